// How a kernel is to be launched: what a library that compiler.py makes is called with, beside the arguments.
#pragma once
#include <stdint.h>

namespace emulated {

struct Launch {
  unsigned blocks[3], threads[3];
  unsigned dynamic;              // bytes of shared memory
  int order;                     // of threads and blocks: 0 forward, 1 reverse, 2 random
  unsigned seed;                 // of the random order
  unsigned count;                // of arrays in memory
  const uintptr_t (*arrays)[2];  // the address of each and of its end, ascending
  char* error;                   // 1000 bytes: what went wrong
};

}  // namespace emulated
