// The main function of test executables that bring none. A file of its own: the linker leaves it out of the
// others.
#include <doctest/doctest.h>

int main(int argc, char** argv) { return doctest::Context(argc, argv).run(); }
