// Runs every TEST, or those whose name contains the argument. Exit status 1 where one fails.
#include "testing.h"

namespace int8d::testing {
std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}
}  // namespace int8d::testing

int main(int argc, char** argv) {
  int passed = 0, failed = 0;
  for (const auto& test : int8d::testing::tests()) {
    if (argc > 1 && !std::strstr(test.name, argv[1])) continue;
    const int before = int8d::testing::failures;
    test.run();
    const bool ok = int8d::testing::failures == before;
    ok ? ++passed : ++failed;
    std::printf("%s %s\n", ok ? "ok  " : "FAIL", test.name);
    std::fflush(stdout);
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed || !passed;
}
