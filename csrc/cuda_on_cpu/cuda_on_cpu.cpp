#include "cuda_on_cpu/cuda_on_cpu.h"

#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define CRANE_FIBERS_UNDER_ASAN 1
#else
#define CRANE_FIBERS_UNDER_ASAN 0
#endif

dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace cuda_on_cpu {

namespace {

constexpr size_t kStackBytes = 128 << 10;
constexpr int kWarp = 32;

// A meeting of threads that goes on when the last one arrives. Values are kept twice, by turns: a thread can only be
// one meeting ahead of one that has yet to read.
struct Meeting {
  unsigned mask;
  int expected;
  int arrived = 0;
  uint64_t held = 0;  // how many meetings were completed
  bool any[2] = {false, false};
  Operation operation{};
  uint64_t values[2][kWarp] = {};
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> own_stack;
  const void* stack = nullptr;
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;
  dim3 index;
  unsigned number = 0;
  bool done = false;
  const Meeting* waits_for = nullptr;
  uint64_t waits_until = 0;  // runs again when waits_for->held is more than this

  bool runs() const { return !done && (waits_for == nullptr || waits_for->held > waits_until); }
};

struct Device {
  Fiber scheduler;  // the one who calls run()
  std::vector<Fiber> fibers;
  unsigned n_threads = 0;
  Fiber* current = nullptr;
  Fiber* previous = nullptr;  // who ran before
  const std::function<void()>* thread = nullptr;
  std::vector<std::vector<std::unique_ptr<Meeting>>> warps;  // the masks that each warp has met on
  Meeting block{};
  std::unique_ptr<unsigned char[]> shared;
  Launch* launch = nullptr;
};

Device& device() {
  static Device one;
  return one;
}

// What a fiber does first when it is switched to.
void arrive([[maybe_unused]] void* fake_stack) {
#if CRANE_FIBERS_UNDER_ASAN
  Fiber& from = *device().previous;
  __sanitizer_finish_switch_fiber(fake_stack, &from.stack, &from.stack_bytes);
#endif
}

// Goes on with another fiber; returns when someone switches back, never if this one is done.
void switch_to(Fiber& to) {
  Device& d = device();
  Fiber& from = *d.current;
  d.previous = &from;
  d.current = &to;
  threadIdx = to.index;
#if CRANE_FIBERS_UNDER_ASAN
  __sanitizer_start_switch_fiber(from.done ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
#endif
  if (from.done) setcontext(&to.context);
  swapcontext(&from.context, &to.context);
  arrive(from.fake_stack);
}

// The thread to go on with after this one, in the order of the settings; the scheduler if none can run.
Fiber& next_after(unsigned number) {
  Device& d = device();
  const unsigned n = d.n_threads;
  for (unsigned i = 1; i <= n; ++i) {
    Fiber& fiber = d.fibers[settings().descending ? (number + n - i) % n : (number + i) % n];
    if (fiber.runs()) return fiber;
  }
  return d.scheduler;
}

// The body of every fiber.
void fiber_main() {
  Device& d = device();
  arrive(nullptr);
  (*d.thread)();
  d.current->done = true;
  switch_to(next_after(d.current->number));
}

void wait_for(const Meeting& meeting, uint64_t held) {
  Fiber& fiber = *device().current;
  fiber.waits_for = &meeting;
  fiber.waits_until = held;
  switch_to(next_after(fiber.number));
  fiber.waits_for = nullptr;
}

// Arrives at a meeting and waits for the others; returns the turn whose values are to be read.
int meet(Meeting& meeting, Operation operation, int place, uint64_t value, bool predicate) {
  const uint64_t held = meeting.held;
  const int turn = static_cast<int>(held % 2);
  if (meeting.arrived == 0) {
    meeting.operation = operation;
    meeting.any[turn] = false;
  }
  if (meeting.operation != operation) fail("threads of one mask are at different operations");
  if (place >= 0) meeting.values[turn][place] = value;
  meeting.any[turn] |= predicate;
  if (++meeting.arrived == meeting.expected) {
    meeting.arrived = 0;
    ++meeting.held;
  } else {
    wait_for(meeting, held);
  }
  return turn;
}

Meeting& warp_meeting(unsigned warp, unsigned mask) {
  auto& met = device().warps[warp];
  for (auto& meeting : met) {
    if (meeting->mask == mask) return *meeting;
  }
  met.push_back(std::make_unique<Meeting>());
  met.back()->mask = mask;
  met.back()->expected = __builtin_popcount(mask);
  return *met.back();
}

void prepare_block(size_t shared_bytes) {
  Device& d = device();
  d.warps.clear();
  d.warps.resize((d.n_threads + kWarp - 1) / kWarp);
  d.block = Meeting{};
  d.block.expected = static_cast<int>(d.n_threads);
  d.shared.reset(new unsigned char[shared_bytes]);
  std::memset(d.shared.get(), 0xFF, shared_bytes);
  if (d.fibers.size() < d.n_threads) d.fibers.resize(d.n_threads);
  for (unsigned i = 0; i < d.n_threads; ++i) {
    Fiber& fiber = d.fibers[i];
    if (fiber.own_stack == nullptr) fiber.own_stack.reset(new char[kStackBytes]);
    fiber.stack = fiber.own_stack.get();
    fiber.stack_bytes = kStackBytes;
    fiber.number = i;
    fiber.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    fiber.done = false;
    fiber.waits_for = nullptr;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.own_stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
  }
}

void run_block() {
  Device& d = device();
  d.current = &d.scheduler;
  switch_to(next_after(settings().descending ? 0 : d.n_threads - 1));
  for (unsigned i = 0; i < d.n_threads; ++i) {
    if (d.fibers[i].done) continue;
    threadIdx = d.fibers[i].index;
    fail("a thread waits for others that never arrive");
  }
}

}  // namespace

Settings& settings() {
  static Settings one;
  return one;
}

std::vector<Launch>& launches() {
  static std::vector<Launch> all;
  return all;
}

void fail(const std::string& message) {
  const Device& d = device();
  std::fprintf(stderr, "cuda_on_cpu: %s, in kernel %s, block (%u, %u, %u), thread (%u, %u, %u)\n", message.c_str(),
               d.launch == nullptr ? "?" : d.launch->kernel.c_str(), blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x,
               threadIdx.y, threadIdx.z);
  std::_Exit(3);
}

void run(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread) {
  Device& d = device();
  d.n_threads = block.x * block.y * block.z;
  launches().push_back({kernel, int64_t{grid.x} * grid.y * grid.z, d.n_threads, 0, 0});
  d.launch = &launches().back();
  gridDim = grid;
  blockDim = block;
  d.thread = &thread;
  const int64_t limit = settings().blocks_from_the_end;
  const int64_t first = limit > 0 && limit < grid.x ? grid.x - limit : 0;
  for (int64_t z = 0; z < grid.z; ++z) {
    for (int64_t y = 0; y < grid.y; ++y) {
      for (int64_t x = first; x < grid.x; ++x) {
        const int64_t at = settings().descending ? grid.x - 1 - (x - first) : x;
        blockIdx = {static_cast<unsigned>(at), static_cast<unsigned>(y), static_cast<unsigned>(z)};
        prepare_block(shared_bytes);
        run_block();
      }
    }
  }
}

void* dynamic_shared() { return device().shared.get(); }

unsigned lane() { return device().current->number % kWarp; }

const uint64_t* exchange(Operation operation, unsigned mask, uint64_t mine) {
  if ((mask >> lane() & 1) == 0) fail("a lane outside the mask is at a warp operation");
  Meeting& meeting = warp_meeting(device().current->number / kWarp, mask);
  return meeting.values[meet(meeting, operation, static_cast<int>(lane()), mine, false)];
}

int sync_block(bool predicate) {
  Meeting& meeting = device().block;
  return meeting.any[meet(meeting, Operation::kSyncThreads, -1, 0, predicate)] ? 1 : 0;
}

uint64_t taken_from(const uint64_t* values, unsigned mask, unsigned source) {
  if ((mask >> source & 1) == 0) fail("a shuffle reads a lane outside the mask");
  return values[source];
}

void count(const void* p, size_t bytes, bool stored) {
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0) fail("misaligned access");
  Launch& launch = *device().launch;
  (stored ? launch.bytes_stored : launch.bytes_loaded) += static_cast<int64_t>(bytes);
}

float half_to_float(uint16_t bits) {
  const int exponent = bits >> 10 & 0x1F;
  const int fraction = bits & 0x3FF;
  float magnitude = 0;
  if (exponent == 0x1F) {
    magnitude = fraction == 0 ? INFINITY : NAN;
  } else if (exponent == 0) {
    magnitude = std::ldexp(static_cast<float>(fraction), -24);
  } else {
    magnitude = std::ldexp(static_cast<float>(fraction | 0x400), exponent - 25);
  }
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

uint16_t float_to_half(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return sign | 0x7E00;
  if (magnitude >= 65520.0f) return sign | 0x7C00;
  if (magnitude < 0x1p-14f) {  // subnormal, or rounds up to the least normal number
    return sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(magnitude, 24)));
  }
  int exponent = 0;
  std::frexp(magnitude, &exponent);  // magnitude in [2^(exponent - 1), 2^exponent)
  const int fraction = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 11 - exponent)));  // 1024 .. 2048
  return sign | static_cast<uint16_t>(((exponent + 14) << 10) + (fraction - 1024));
}

float bfloat16_to_float(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value = 0;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

uint16_t float_to_bfloat16(float value) {
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  if (std::isnan(value)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

}  // namespace cuda_on_cpu
