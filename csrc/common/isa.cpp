#include "common/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace crane {

namespace {

std::vector<Isa> detect() {
  std::vector<Isa> found{Isa::kBaseline};
#if defined(CRANE_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    found.push_back(Isa::kAvx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      found.push_back(Isa::kAvx512);
    }
  }
#endif
  return found;
}

Isa select() {
  const char* wanted = std::getenv("CRANE_ISA");
  if (wanted == nullptr || *wanted == '\0') return available_isas().back();
  std::string names;
  for (Isa isa : available_isas()) {
    if (isa_name(isa) == std::string(wanted)) return isa;
    names += std::string(names.empty() ? "" : ", ") + isa_name(isa);
  }
  throw std::invalid_argument("CRANE_ISA: found '" + std::string(wanted) +
                              "', expected one this machine runs: " + names);
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "baseline";
  }
}

const std::vector<Isa>& available_isas() {
  static const std::vector<Isa> found = detect();
  return found;
}

Isa selected_isa() {
  static const Isa selected = select();
  return selected;
}

}  // namespace crane
