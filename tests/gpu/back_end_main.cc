// Runs the tests of the back end where there is a device; else says why not and leaves them out.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>

#include "runtime/cuda/back_end.h"

int main(int argc, char** argv) {
  if (const auto problem = llmctl::runtime::cuda::find_problem()) {
    std::printf("gpu back end left out: %s\n", problem->what());
    return 77;  // ctest's SKIP_RETURN_CODE
  }
  return doctest::Context(argc, argv).run();
}
