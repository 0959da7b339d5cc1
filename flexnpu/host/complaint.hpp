// What a library of this room says when it is asked for what it does not do.
#pragma once

// Writes "FlexNPU: <text>" to stderr, once a text.
extern "C" void flexnpu_host_complain(const char* text);
