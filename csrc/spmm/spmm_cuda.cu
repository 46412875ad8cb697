// A row of y is computed by a group of lanes, each of which holds up to 16 bytes' worth of columns; the lanes fetch as
// many edges at once as they are, hand them round and load the rows of x that these name, several at a time.
//
// A row of more than kSegment edges (a hub) would keep its group busy long after all others are done. The array of
// edges is cut at multiples of kSegment; what a hub has in a segment is summed by a group of its own into the
// workspace, and a second launch adds these partial sums up. A segment meets two hubs at most: one that has its first
// edge, whose partial sum goes to slot 2 s, and one that begins within it and goes on beyond it, to slot 2 s + 1. So
// slots follow from rowptr, and no list of hubs is needed.
#include "common/device.cuh"
#include "spmm/edges.cuh"
#include "spmm/spmm_cuda.h"

namespace crane::cuda {

namespace {

constexpr int kBlock = 256;
constexpr int64_t kSegment = 256;
constexpr int kUnroll = 4;  // rows of x that a lane has under way at a time
constexpr int kBlocks = 2;  // on a multiprocessor at least: left to itself, ptxas spills registers for more

template <typename T>
struct Args {
  Spmm call;
  Accumulator<T>* partial;  // 2 n_segments rows of width
  int64_t* partial_argmax;  // the same, for kMax
  uint8_t* wanted_slots;    // null, or 2 n_segments: which partial sums `rows` asks for
  int64_t n_segments;       // 0: no row can be a hub
  int group;                // lanes

  __device__ const T* x(int64_t row, int64_t column) const {
    return static_cast<const T*>(call.x) + row * call.x_stride + column;
  }
  __device__ const T* base(int64_t row, int64_t column) const {
    return static_cast<const T*>(call.base) + row * call.base_stride + column;
  }
  __device__ T* y(int64_t out, int64_t column) const { return static_cast<T*>(call.y) + out * call.width + column; }
};

// The reduction of some edges, for kWidth columns.
template <typename A, int kWidth>
struct Sum {
  A value[kWidth] = {};

  __device__ void add(int k, int64_t, A term) { value[k] += term; }
  __device__ void merge(int k, const Sum& other, int from) { value[k] += other.value[from]; }
};

template <typename A, int kWidth>
struct Max {
  A value[kWidth] = {};
  int64_t argmax[kWidth];

  __device__ Max() {
#pragma unroll
    for (int k = 0; k < kWidth; ++k) argmax[k] = -1;
  }
  // A NaN wins, the first of them.
  __device__ void add(int k, int64_t edge, A term) {
    const bool is_nan = term != term, was_nan = value[k] != value[k];
    if (argmax[k] < 0 || term > value[k] || (is_nan && !was_nan)) {
      value[k] = term;
      argmax[k] = edge;
    }
  }
  __device__ void merge(int k, const Max& other, int from) {
    if (other.argmax[from] >= 0) add(k, other.argmax[from], other.value[from]);
  }
};

// Adds the edges [begin, end) to total, for the columns from `column` on.
template <int kBytes, typename T, typename Total>
__device__ void gather(const Args<T>& args, const Group& group, int64_t begin, int64_t end, int64_t column,
                       Total& total) {
  constexpr int kWidth = kBytes / static_cast<int>(sizeof(T));
  using A = Accumulator<T>;
  const bool active = column < args.call.width;
  for (int64_t chunk = begin; chunk < end; chunk += group.size) {
    const int64_t mine = chunk + group.lane;
    int64_t col = 0;
    A value = 0;
    bool wanted = mine < end;
    if (wanted) {
      col = load_col(args.call.a, mine);
      wanted = args.call.x_mask == nullptr || load(args.call.x_mask + col) != 0;
    }
    if (wanted) value = widen(load_once(static_cast<const T*>(args.call.a.value) + mine));
    unsigned left = group.ballot(wanted);
    while (left != 0) {
      Pack<T, kWidth> row[kUnroll];
      A weight[kUnroll];
      int source[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        source[u] = __ffs(static_cast<int>(left)) - 1;  // -1: no edge is left
        left &= left - 1;
        const int from = source[u] < 0 ? 0 : source[u];
        weight[u] = group.broadcast(value, from);
        const int64_t j = group.broadcast(col, from);
        if (active && source[u] >= 0) row[u] = load_pack<kWidth>(args.x(j, column));
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (!active || source[u] < 0) continue;
#pragma unroll
        for (int k = 0; k < kWidth; ++k) total.add(k, chunk + source[u], weight[u] * widen(row[u].v[k]));
      }
    }
  }
}

// What is left to do with a row's reduction, then stores it.
template <int kWidth, typename T, typename Total>
__device__ void finish(const Args<T>& args, int64_t out, int64_t row, int64_t n_edges, int64_t column, Total& total) {
  using A = Accumulator<T>;
  const Spmm& call = args.call;
  Pack<T, kWidth> result;
  Pack<T, kWidth> base;
  const bool based = call.base != nullptr && (call.base_mask == nullptr || load(call.base_mask + row) != 0);
  if (based) base = load_pack<kWidth>(args.base(row, column));
#pragma unroll
  for (int k = 0; k < kWidth; ++k) {
    A v = total.value[k];
    if (call.reduce == Reduce::kMean && n_edges > 0) v /= static_cast<A>(n_edges);
    if (based) v += widen(base.v[k]);
    narrow(static_cast<A>(call.scale) * v, result.v[k]);
  }
  store_pack<kWidth>(args.y(out, column), result);
}

template <int kWidth, typename A>
__device__ void store_argmax(int64_t*, const Sum<A, kWidth>&) {}

template <int kWidth, typename A>
__device__ void store_argmax(int64_t* p, const Max<A, kWidth>& total) {
  Pack<int64_t, kWidth> pack;
#pragma unroll
  for (int k = 0; k < kWidth; ++k) pack.v[k] = total.argmax[k];
  store_pack<kWidth>(p, pack);
}

__device__ bool is_hub(int64_t begin, int64_t end) { return end - begin > kSegment; }

// Where the partial sum of a hub that begins with edge `begin` goes, of the segment s.
__device__ int64_t slot_of(int64_t s, int64_t begin) { return 2 * s + (begin > s * kSegment ? 1 : 0); }

// What a group has to do: the edges [begin, end) of a row of n_edges, to a row of y, or to a slot of the workspace.
struct Task {
  bool exists;
  int64_t begin, end, row, n_edges;
  int64_t out;   // whole rows
  int64_t slot;  // parts of hubs; else -1
};

template <typename T>
__device__ Task slot_task(const Args<T>& args, const Group& group, int64_t slot) {
  constexpr Task kNone{};
  const Csr& a = args.call.a;
  if (!wants(args.wanted_slots, group, slot)) return kNone;
  const int64_t first = slot / 2 * kSegment;
  const int64_t last = first + kSegment < a.n_edges ? first + kSegment : a.n_edges;
  const int64_t row = group.broadcast(group.lane == 0 ? row_of_edge(a, 0, slot % 2 == 0 ? first : last - 1) : 0, 0);
  const Range edges = edges_of_row(a, group, row);
  if (!is_hub(edges.begin, edges.end) || slot_of(slot / 2, edges.begin) != slot) return kNone;
  if (!wants(args.call.y_mask, group, row)) return kNone;
  return {true, edges.begin > first ? edges.begin : first, edges.end < last ? edges.end : last, row, 0, 0, slot};
}

template <typename T>
__device__ Task row_task(const Args<T>& args, const Group& group, int64_t out) {
  constexpr Task kNone{};
  if (out >= args.call.n_out || !wants(args.call.y_mask, group, out)) return kNone;
  const int64_t row = row_of_output(args.call.rows, group, out, args.call.a.n_rows);
  const Range edges = edges_of_row(args.call.a, group, row);
  if (args.n_segments > 0 && is_hub(edges.begin, edges.end)) return kNone;
  return {true, edges.begin, edges.end, row, edges.end - edges.begin, out, -1};
}

// First the slots, which take longest, then the rows.
template <typename T, int kBytes, template <typename, int> class Reduction>
__global__ void __launch_bounds__(kBlock, kBlocks) spmm_kernel(const Args<T> args) {
  constexpr int kWidth = kBytes / static_cast<int>(sizeof(T));
  const int64_t width = args.call.width;
  const Group group(args.group);
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * group.size + group.lane) * kWidth;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * (kBlock / group.size) + group.number();
  const int64_t n_slots = 2 * args.n_segments;
  const Task task = item < n_slots ? slot_task(args, group, item) : row_task(args, group, item - n_slots);
  if (!task.exists) return;
  Reduction<Accumulator<T>, kWidth> total;
  gather<kBytes>(args, group, task.begin, task.end, column, total);
  if (column >= width) return;
  if (task.slot < 0) {
    finish<kWidth>(args, task.out, task.row, task.n_edges, column, total);
    if (args.call.argmax != nullptr) store_argmax<kWidth>(args.call.argmax + task.out * width + column, total);
    return;
  }
  Pack<Accumulator<T>, kWidth> pack;
#pragma unroll
  for (int k = 0; k < kWidth; ++k) pack.v[k] = total.value[k];
  store_pack<kWidth>(args.partial + task.slot * width + column, pack);
  store_argmax<kWidth>(args.partial_argmax + task.slot * width + column, total);
}

// Says which partial sums the hubs among `rows` need.
__global__ void __launch_bounds__(kBlock)
    spmm_wanted_kernel(const Csr a, const int64_t* rows, int64_t n_out, uint8_t* wanted_slots) {
  const int64_t out = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
  if (out >= n_out) return;
  const int64_t row = load_row(rows, out, a.n_rows);
  const int64_t begin = load(a.rowptr + row), end = load(a.rowptr + row + 1);
  if (!is_hub(begin, end)) return;
  for (int64_t s = begin / kSegment; s * kSegment < end; ++s) store(wanted_slots + slot_of(s, begin), uint8_t{1});
}

// Adds up the partial sums of the slots of segments [from, to) of a hub, in order.
template <typename T, typename Total>
__device__ void add_partial_sums(const Args<T>& args, int64_t begin, int64_t from, int64_t to, int64_t column,
                                 Total& total) {
  const int64_t width = args.call.width;
  for (int64_t s = from; s < to; s += kUnroll) {
    Total parts[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (s + u >= to) continue;
      const int64_t at = slot_of(s + u, begin) * width + column;
      parts[u].value[0] = load_once(args.partial + at);
      if constexpr (sizeof(Total) > sizeof(Accumulator<T>)) parts[u].argmax[0] = load_once(args.partial_argmax + at);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (s + u < to) total.merge(0, parts[u], 0);
    }
  }
}

// The second phase: kBlock rows a block. All its groups add up the partial sums of one hub after the other, each group
// a run of them, and the first one adds up what these found.
template <typename T, template <typename, int> class Reduction>
__global__ void __launch_bounds__(kBlock, kBlocks) spmm_hubs_kernel(const Args<T> args) {
  using Total = Reduction<Accumulator<T>, 1>;
  CRANE_DYNAMIC_SHARED(Total, sums);  // a group's lanes, for each group
  __shared__ Range ranges[kBlock];
  const Csr& a = args.call.a;
  const Group group(args.group);
  const int64_t first_out = static_cast<int64_t>(blockIdx.x) * kBlock;
  const int64_t mine = first_out + threadIdx.x;
  const bool exists = mine < args.call.n_out && (args.call.y_mask == nullptr || load(args.call.y_mask + mine) != 0);
  Range edges{0, 0};
  if (exists) {
    const int64_t row = args.call.rows == nullptr ? mine : load_row(args.call.rows, mine, a.n_rows);
    edges = {load(a.rowptr + row), load(a.rowptr + row + 1)};
  }
  const bool hub = is_hub(edges.begin, edges.end);
  if (__syncthreads_or(hub) == 0) return;
  ranges[threadIdx.x] = hub ? edges : Range{0, 0};
  __syncthreads();
  const int64_t column = static_cast<int64_t>(blockIdx.y) * group.size + group.lane;
  const int n_groups = kBlock / group.size;
  for (int i = 0; i < kBlock; ++i) {
    const Range range = ranges[i];
    if (range.end == 0) continue;
    const int64_t s = range.begin / kSegment, n = (range.end - 1) / kSegment + 1 - s;
    const int64_t each = (n + n_groups - 1) / n_groups;
    const int64_t from = s + group.number() * each;
    const int64_t to = from + each < s + n ? from + each : s + n;
    Total total;
    if (column < args.call.width) add_partial_sums(args, range.begin, from, to, column, total);
    sums[threadIdx.x] = total;
    __syncthreads();
    if (group.number() == 0 && column < args.call.width) {
      for (int other = 1; other < n_groups; ++other) total.merge(0, sums[other * group.size + group.lane], 0);
      const int64_t out = first_out + i;
      const int64_t row = args.call.rows == nullptr ? out : load_row(args.call.rows, out, a.n_rows);
      finish<1>(args, out, row, range.end - range.begin, column, total);
      if (args.call.argmax != nullptr) store_argmax<1>(args.call.argmax + out * args.call.width + column, total);
    }
    __syncthreads();
  }
}

int64_t segments(const Spmm& call) {
  return call.a.n_edges > kSegment ? (call.a.n_edges + kSegment - 1) / kSegment : 0;
}

// Byte offsets of what the workspace holds.
struct Workspace {
  size_t argmax, wanted, end;

  explicit Workspace(const Spmm& call) {
    const size_t slots = 2 * static_cast<size_t>(segments(call)), elements = slots * static_cast<size_t>(call.width);
    argmax = aligned(elements * (call.type == Type::kDouble ? sizeof(double) : sizeof(float)));
    wanted = argmax + (call.reduce == Reduce::kMax ? elements * sizeof(int64_t) : 0);
    end = wanted + (call.rows == nullptr ? 0 : aligned(slots));
  }
};

template <typename T, int kBytes, template <typename, int> class Reduction>
const char* run_rows(Args<T> args, void* stream) {
  constexpr int kWidth = kBytes / static_cast<int>(sizeof(T));
  args.group = group_size(blocks(args.call.width, kWidth));
  const int64_t items = 2 * args.n_segments + args.call.n_out;
  const dim3 grid{static_cast<unsigned>(blocks(items, kBlock / args.group)),
                  static_cast<unsigned>(blocks(args.call.width, int64_t{args.group} * kWidth)), 1};
  return launch("spmm", spmm_kernel<T, kBytes, Reduction>, grid, kBlock, 0, stream, args);
}

template <typename T, template <typename, int> class Reduction>
const char* run_hubs(Args<T> args, void* stream) {
  args.group = group_size(args.call.width);
  const dim3 grid{static_cast<unsigned>(blocks(args.call.n_out, kBlock)),
                  static_cast<unsigned>(blocks(args.call.width, args.group)), 1};
  const size_t shared = kBlock * sizeof(Reduction<Accumulator<T>, 1>);
  return launch("spmm_hubs", spmm_hubs_kernel<T, Reduction>, grid, kBlock, shared, stream, args);
}

// The most bytes, of those that there are kernels for, that every row of x, base and y can be moved by.
template <typename T>
int access_bytes(const Spmm& call) {
  const bool based = call.base != nullptr;
  const uintptr_t all = reinterpret_cast<uintptr_t>(call.x) | reinterpret_cast<uintptr_t>(call.y) |
                        static_cast<uintptr_t>(call.width | call.x_stride) * sizeof(T) |
                        (based ? reinterpret_cast<uintptr_t>(call.base) : 0) |
                        (based ? static_cast<uintptr_t>(call.base_stride) * sizeof(T) : 0);
  return widest_access<T>(all);
}

template <typename T, template <typename, int> class Reduction>
const char* run(const Args<T>& args, void* stream) {
  if (args.wanted_slots != nullptr && args.n_segments > 0) {
    const char* error = fill_zero(args.wanted_slots, 2 * static_cast<size_t>(args.n_segments), stream);
    const dim3 grid{static_cast<unsigned>(blocks(args.call.n_out, kBlock)), 1, 1};
    if (error == nullptr) {
      error = launch("spmm_wanted", spmm_wanted_kernel, grid, kBlock, 0, stream, args.call.a, args.call.rows,
                     args.call.n_out, args.wanted_slots);
    }
    if (error != nullptr) return error;
  }
  const char* error = with_access<T>(access_bytes<T>(args.call), [&](auto bytes) {
    return run_rows<T, decltype(bytes)::value, Reduction>(args, stream);
  });
  return error != nullptr || args.n_segments == 0 ? error : run_hubs<T, Reduction>(args, stream);
}

}  // namespace

size_t spmm_workspace(const Spmm& call) { return Workspace(call).end; }

const char* spmm(const Spmm& call, void* workspace, void* stream) {
  if (call.n_out == 0 || call.width == 0) return nullptr;
  if (call.reduce == Reduce::kMax && call.x_mask != nullptr) return "a maximum takes no mask of x";
  return with_type(call.type, [&](auto zero) {
    using T = decltype(zero);
    const Workspace layout(call);
    char* memory = static_cast<char*>(workspace);
    Args<T> args{};
    args.call = call;
    args.n_segments = segments(call);
    if (args.n_segments > 0) {
      args.partial = reinterpret_cast<Accumulator<T>*>(memory);
      args.partial_argmax = reinterpret_cast<int64_t*>(memory + layout.argmax);
      if (call.rows != nullptr) args.wanted_slots = reinterpret_cast<uint8_t*>(memory + layout.wanted);
    }
    return call.reduce == Reduce::kMax ? run<T, Max>(args, stream) : run<T, Sum>(args, stream);
  });
}

}  // namespace crane::cuda
