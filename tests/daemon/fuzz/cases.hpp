// How an honest message of each kind looks.
#pragma once

#include <span>

#include "fuzz/generate.hpp"

namespace flexnpu::test {

using Make = void (*)(Generator&);
struct Case {
    wire::Kind kind;
    Make make;
};

// One that is not here is made of words of all sorts.
std::span<const Case> cases();

void collective(Generator& g);
void launch_kernel(Generator& g);

}  // namespace flexnpu::test
