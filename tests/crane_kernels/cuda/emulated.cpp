// Runs one CUDA call under the CPU's stand-in. Its argument is a folder: `call` holds "name number" lines,
// `<array>.bin` the arrays; results go to `<array>.out`, a line for each launch to the standard output. Every array is
// a heap block of exactly its size, and outputs are full of 0xFF bytes (NaN) before the call.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cuda_on_cpu/cuda_on_cpu.h"
#include "propagate/propagate_cuda.h"
#include "spmm/spmm_cuda.h"

namespace {

using crane::cuda::Csr;

class Folder {
 public:
  explicit Folder(std::string path) : path_(std::move(path)) {
    std::ifstream file(path_ + "/call");
    std::string name;
    double number = 0;
    while (file >> name >> number) numbers_[name] = number;
  }

  double number(const std::string& name, double otherwise = 0) const {
    const auto found = numbers_.find(name);
    return found == numbers_.end() ? otherwise : found->second;
  }
  int64_t integer(const std::string& name, int64_t otherwise = 0) const {
    return static_cast<int64_t>(number(name, static_cast<double>(otherwise)));
  }

  // The array of that name, or null. `<name>_skip` bytes come before it, for a start that is less aligned. With
  // `<name>_bytes` it is that long in address space alone, and what the file holds is its end.
  unsigned char* array(const std::string& name) {
    std::ifstream file(path_ + "/" + name + ".bin", std::ios::binary);
    if (!file) return nullptr;
    const std::vector<char> content{std::istreambuf_iterator<char>(file), {}};
    const size_t skip = static_cast<size_t>(integer(name + "_skip"));
    unsigned char* start = allocate(skip + content.size(), integer(name + "_bytes"));
    std::copy(content.begin(), content.end(), start + skip);
    const size_t before = numbers_.contains(name + "_bytes") ? integer(name + "_bytes") - content.size() : 0;
    return start + skip - before;
  }

  // An output of so many bytes, or only in address space the `<name>_bytes` of which they are the end.
  unsigned char* output(const std::string& name, size_t bytes) {
    unsigned char* end_part = allocate(bytes, integer(name + "_bytes"));
    std::fill_n(end_part, bytes, 0xFF);
    outputs_[name] = {end_part, bytes};
    return end_part - (numbers_.contains(name + "_bytes") ? integer(name + "_bytes") - bytes : 0);
  }

  void write() const {
    for (const auto& [name, memory] : outputs_) {
      std::ofstream file(path_ + "/" + name + ".out", std::ios::binary);
      file.write(reinterpret_cast<const char*>(memory.first), static_cast<std::streamsize>(memory.second));
    }
  }

 private:
  // The last `bytes` of a region of `all` bytes that is only touched where it is used, or (all == 0) a heap block.
  unsigned char* allocate(size_t bytes, int64_t all) {
    if (all == 0) {
      heap_.emplace_back(new unsigned char[bytes]);
      return heap_.back().get();
    }
    void* region = mmap(nullptr, static_cast<size_t>(all), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (region == MAP_FAILED) {
      std::perror("mmap");
      std::exit(4);
    }
    return static_cast<unsigned char*>(region) + all - bytes;
  }

  std::string path_;
  std::map<std::string, double> numbers_;
  std::vector<std::unique_ptr<unsigned char[]>> heap_;
  std::map<std::string, std::pair<unsigned char*, size_t>> outputs_;
};

Csr graph(Folder& folder) {
  return {reinterpret_cast<const int64_t*>(folder.array("rowptr")),
          folder.array("col"),
          folder.array("value"),
          folder.integer("n_rows"),
          folder.integer("n_edges"),
          folder.integer("wide") != 0};
}

size_t element_bytes(int64_t type) { return type == 0 ? 4 : type == 1 ? 8 : 2; }

const char* spmm(Folder& folder) {
  crane::cuda::Spmm call{};
  call.a = graph(folder);
  call.type = static_cast<crane::cuda::Type>(folder.integer("type"));
  call.x = folder.array("x");
  call.x_mask = folder.array("x_mask");
  call.base = folder.array("base");
  call.base_mask = folder.array("base_mask");
  call.rows = reinterpret_cast<const int64_t*>(folder.array("rows"));
  call.y_mask = folder.array("y_mask");
  call.n_out = folder.integer("n_out");
  call.width = folder.integer("width");
  call.x_stride = folder.integer("x_stride", call.width);
  call.base_stride = folder.integer("base_stride", call.width);
  call.scale = folder.number("scale", 1);
  call.reduce = static_cast<crane::cuda::Reduce>(folder.integer("reduce"));
  const size_t elements = static_cast<size_t>(folder.integer("stored_rows", call.n_out) * call.width);
  call.y = folder.output("y", elements * element_bytes(folder.integer("type")));
  if (folder.integer("argmax") != 0) {
    call.argmax = reinterpret_cast<int64_t*>(folder.output("argmax", elements * sizeof(int64_t)));
  }
  return crane::cuda::spmm(call, folder.output("workspace", crane::cuda::spmm_workspace(call)), nullptr);
}

const char* propagate(Folder& folder) {
  crane::cuda::Propagate call{};
  call.a = graph(folder);
  call.type = static_cast<crane::cuda::Type>(folder.integer("type"));
  call.x = folder.array("x");
  call.rows = reinterpret_cast<const int64_t*>(folder.array("rows"));
  call.n_out = folder.integer("n_out");
  call.width = folder.integer("width");
  call.x_stride = folder.integer("x_stride", call.width);
  call.layers = folder.integer("layers");
  call.y = folder.output("y", static_cast<size_t>(call.n_out * call.width) * element_bytes(folder.integer("type")));
  void* workspace = folder.output("workspace", crane::cuda::propagate_workspace(call));
  return crane::cuda::propagate(call, workspace, nullptr);
}

const char* sddmm(Folder& folder) {
  crane::cuda::Sddmm call{};
  call.a = graph(folder);
  call.type = static_cast<crane::cuda::Type>(folder.integer("type"));
  call.g = folder.array("g");
  call.g_mask = folder.array("g_mask");
  call.x = folder.array("x");
  call.width = folder.integer("width");
  call.g_stride = folder.integer("g_stride", call.width);
  call.x_stride = folder.integer("x_stride", call.width);
  call.mean = folder.integer("mean") != 0;
  call.out = folder.output("out", static_cast<size_t>(call.a.n_edges) * element_bytes(folder.integer("type")));
  return crane::cuda::sddmm(call, nullptr);
}

crane::cuda::RowList row_list(Folder& folder) {
  return {reinterpret_cast<const int64_t*>(folder.array("sorted")),
          reinterpret_cast<const int64_t*>(folder.array("place")), folder.integer("n_places")};
}

// The transpose: arrays whose names end in _t.
Csr transpose(Folder& folder) {
  return {reinterpret_cast<const int64_t*>(folder.array("rowptr_t")),
          folder.array("col_t"),
          folder.array("value_t"),
          folder.integer("n_cols"),
          folder.integer("n_edges"),
          folder.integer("wide") != 0};
}

// What the products with a transpose share; their results have a row for each of its rows.
template <typename Call>
Call transposed_call(Folder& folder) {
  Call call{};
  call.a = graph(folder);
  call.t = transpose(folder);
  call.rows = row_list(folder);
  call.type = static_cast<crane::cuda::Type>(folder.integer("type"));
  call.grad = folder.array("grad");
  call.width = folder.integer("width");
  call.grad_stride = folder.integer("grad_stride", call.width);
  call.y = folder.output("y", static_cast<size_t>(call.t.n_rows * call.width * element_bytes(folder.integer("type"))));
  return call;
}

const char* spmm_t(Folder& folder) {
  const auto call = transposed_call<crane::cuda::SpmmT>(folder);
  return crane::cuda::spmm_t(call, folder.output("workspace", crane::cuda::spmm_t_workspace(call)), nullptr);
}

const char* propagate_t(Folder& folder) {
  auto call = transposed_call<crane::cuda::PropagateT>(folder);
  call.layers = folder.integer("layers");
  void* workspace = folder.output("workspace", crane::cuda::propagate_t_workspace(call));
  return crane::cuda::propagate_t(call, workspace, nullptr);
}

const char* reorder(Folder& folder) {
  const Csr a = graph(folder);
  const auto type = static_cast<crane::cuda::Type>(folder.integer("type"));
  void* out = folder.output("out", static_cast<size_t>(a.n_edges) * element_bytes(folder.integer("type")));
  return crane::cuda::reorder(a.value, folder.array("order"), a.wide, type, a.n_edges, out, nullptr);
}

// What rows reach in one step: mark_rows, then mark_columns.
const char* reach(Folder& folder) {
  const Csr a = graph(folder);
  const size_t n_rows = static_cast<size_t>(a.n_rows), n_cols = static_cast<size_t>(folder.integer("n_cols"));
  unsigned char* wanted = folder.output("wanted", n_rows);
  unsigned char* reached = folder.output("reached", n_cols);
  std::memset(wanted, 0, n_rows);
  std::memset(reached, 0, n_cols);
  const auto* rows = reinterpret_cast<const int64_t*>(folder.array("rows"));
  const char* error = crane::cuda::mark_rows(rows, folder.integer("n_out"), a.n_rows, wanted, nullptr);
  return error != nullptr ? error : crane::cuda::mark_columns(a, wanted, reached, nullptr);
}

}  // namespace

int main(int, char** arguments) {
  const std::string operation = arguments[1];
  Folder folder(arguments[2]);
  cuda_on_cpu::settings().descending = folder.integer("descending") != 0;
  cuda_on_cpu::settings().blocks_from_the_end = folder.integer("blocks_from_the_end");
  const std::map<std::string, const char* (*)(Folder&)> operations = {
      {"spmm", spmm},   {"spmm_t", spmm_t},   {"propagate", propagate}, {"propagate_t", propagate_t},
      {"sddmm", sddmm}, {"reorder", reorder}, {"reach", reach}};
  const char* error = operations.at(operation)(folder);
  if (error != nullptr) {
    std::fprintf(stderr, "%s\n", error);
    return 2;
  }
  folder.write();
  for (const auto& launch : cuda_on_cpu::launches()) {
    std::printf("%s %ld %ld %ld %ld\n", launch.kernel.c_str(), static_cast<long>(launch.blocks),
                static_cast<long>(launch.threads_per_block), static_cast<long>(launch.bytes_loaded),
                static_cast<long>(launch.bytes_stored));
  }
  return 0;
}
