// The Python module of what takes no tensors: numpy arrays and facts about the processor.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "common/isa.h"

PYBIND11_MODULE(_host, m) {
  m.doc() = "Host-side functions of crane_kernels.";
  m.def("instruction_set", [] { return std::string(crane::isa_name(crane::selected_isa())); });
  m.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (crane::Isa isa : crane::available_isas()) names.emplace_back(crane::isa_name(isa));
    return names;
  });
}
