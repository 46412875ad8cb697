// The Python module of what takes no tensors: numpy arrays and facts about the processor.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "common/isa.h"
#include "prune_edges/prune_edges.h"
#include "sample_negatives/sample_negatives.h"

namespace py = pybind11;

namespace {

// Arrays are taken as they are: a wrong dtype or order is refused instead of copied.
template <typename T>
using Array = py::array_t<T, py::array::c_style>;

template <typename Index>
Array<int64_t> sample_negatives(const Array<int64_t>& rowptr, const Array<Index>& col, const Array<int64_t>& rows,
                                const Array<int64_t>& ranks) {
  if (rows.size() != ranks.size()) throw std::invalid_argument("ranks: expected one for each of rows");
  Array<int64_t> items(rows.size());
  int64_t* out = items.mutable_data();
  const py::gil_scoped_release release;
  crane::nth_absent(rowptr.data(), col.data(), rows.data(), ranks.data(), out, rows.size());
  return items;
}

template <typename Weight>
std::pair<Array<int64_t>, Array<int64_t>> prune_edges(const Array<int64_t>& rowptr, const Array<Weight>& weights,
                                                      const Array<double>& draws, int64_t count) {
  const int64_t n = weights.size();
  if (draws.size() != n || count < 1 || count > n) {
    throw std::invalid_argument("draws and count: expected one draw for each weight, and 1 to as many edges to keep");
  }
  Array<int64_t> positions(count), kept_rowptr(rowptr.size());
  int64_t* out = positions.mutable_data();
  int64_t* out_rowptr = kept_rowptr.mutable_data();
  {
    const py::gil_scoped_release release;
    crane::smallest_keys(draws.data(), weights.data(), n, count, out);
    crane::kept_rows(rowptr.data(), rowptr.size() - 1, out, count, out_rowptr);
  }
  return {std::move(positions), std::move(kept_rowptr)};
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Host-side functions of crane_kernels.";
  m.def("instruction_set", [] { return std::string(crane::isa_name(crane::selected_isa())); });
  m.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (crane::Isa isa : crane::available_isas()) names.emplace_back(crane::isa_name(isa));
    return names;
  });
  m.def("sample_negatives", sample_negatives<int32_t>, py::arg("rowptr").noconvert(), py::arg("col").noconvert(),
        py::arg("rows").noconvert(), py::arg("ranks").noconvert(),
        "The ranks[b]-th column that row rows[b] has no edge to, for each b.");
  m.def("sample_negatives", sample_negatives<int64_t>, py::arg("rowptr").noconvert(), py::arg("col").noconvert(),
        py::arg("rows").noconvert(), py::arg("ranks").noconvert());
  m.def("prune_edges", prune_edges<float>, py::arg("rowptr").noconvert(), py::arg("weights").noconvert(),
        py::arg("draws").noconvert(), py::arg("count"),
        "Positions of the count smallest draws / weights, ascending, and the row pointer of the kept edges.");
  m.def("prune_edges", prune_edges<double>, py::arg("rowptr").noconvert(), py::arg("weights").noconvert(),
        py::arg("draws").noconvert(), py::arg("count"));
}
