// The step programs, all in one: what clang compiles to steps.bpf.o, and bcc where it runs.
#include "common.h"

#include "shapes.c"

#include "openings.c"

#include "endings.c"

#include "copies.c"

#include "client.c"

#include "transfers.c"
