// Which instruction set the kernels use. Every kernel source is compiled once for each set, in a namespace of that
// set's name (CRANE_ISA), and picked here at run time, so that one library runs on every processor of the architecture.
#pragma once

#include <vector>

namespace crane {

enum class Isa { kBaseline, kAvx2, kAvx512 };

const char* isa_name(Isa isa);

// The sets that are both compiled in and run by this processor, least first.
const std::vector<Isa>& available_isas();

// The best available one, or the one that the environment variable CRANE_ISA names. Throws std::invalid_argument when
// that one is not available.
Isa selected_isa();

}  // namespace crane

// Declares `const Table& name()` in every instruction set's namespace, and crane::name() that picks one of them.
#if defined(CRANE_X86)
#define CRANE_KERNEL_TABLE(Table, name) \
  namespace baseline {                  \
  const Table& name();                  \
  }                                     \
  namespace avx2 {                      \
  const Table& name();                  \
  }                                     \
  namespace avx512 {                    \
  const Table& name();                  \
  }                                     \
  inline const Table& name() {          \
    switch (selected_isa()) {           \
      case Isa::kAvx512:                \
        return avx512::name();          \
      case Isa::kAvx2:                  \
        return avx2::name();            \
      default:                          \
        return baseline::name();        \
    }                                   \
  }
#else
#define CRANE_KERNEL_TABLE(Table, name) \
  namespace baseline {                  \
  const Table& name();                  \
  }                                     \
  inline const Table& name() { return baseline::name(); }
#endif
