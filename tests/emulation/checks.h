// The checks of each access: the end of machine.cpp. Only code that was compiled with -fsanitize asks for them.
//
// Two accesses to the same bytes, one of them a plain write, are a race unless something orders them: the same thread,
// a __syncthreads of the block between them, or a __syncwarp of the warp. Blocks of one launch are ordered only where one
// hands over to another: its thread did a __threadfence and then an atomic, and at the same address a thread of the
// other did an atomic and then a __threadfence. What the one did before its fence comes before what the other does
// after its own; a __syncthreads before the one and after the other takes all threads of their blocks along.
#include <unordered_map>

namespace emulated {
namespace {

struct Access {
  unsigned launch = 0, block = 0, barriers = 0, fences = 0, time = 0;
  int thread = 0;
  uint8_t bytes = 0;  // of the four, a bit each
  bool atomic = false;
};

struct Word {  // of four bytes
  Access write, read, read_in_warp, read_elsewhere;  // the last ones; in_warp: by another thread of read's warp
};

struct Fence {  // a __threadfence
  unsigned block;
  int thread;
  unsigned barriers, time;
};

struct Taken {  // an atomic and the fence after it, if that was already
  uintptr_t address;
  size_t handed;  // how many had handed over there
  int thread;
  bool fenced;
  unsigned barriers;
};

unsigned launches, accesses;
std::unordered_map<uintptr_t, std::vector<Fence>> handed;  // by the address of an atomic; in this launch
std::unordered_map<int, Fence> fenced;                     // by thread: its last one; in the block that runs
std::vector<Taken> taken;                                  // in the block that runs
unsigned running;                                          // that block
std::unordered_map<uintptr_t, std::vector<Word>> words;  // by address / 1024

bool same_warp(const Access& a, const Access& b) { return a.block == b.block && a.thread / 32 == b.thread / 32; }

// Whether a, of an earlier block, was handed over before b.
bool handed_over(const Access& a, const Access& b) {
  for (const Taken& to : taken) {
    if (!to.fenced || (to.thread != b.thread && to.barriers >= b.barriers)) continue;
    const std::vector<Fence>& all = handed[to.address];
    for (size_t i = 0; i < to.handed; i++)
      if (all[i].block == a.block && (all[i].thread == a.thread ? a.time < all[i].time : a.barriers < all[i].barriers))
        return true;
  }
  return false;
}

bool ordered(const Access& a, const Access& b, bool block_owned) {
  if (a.launch != b.launch) return true;
  if (a.block != b.block) return block_owned || handed_over(a, b);  // shared memory is each block's own
  return a.thread == b.thread || a.barriers != b.barriers || (same_warp(a, b) && a.fences != b.fences);
}

bool within(uintptr_t p, const void* start, const void* end) { return uintptr_t(start) <= p && p < uintptr_t(end); }

// The end of the array that p lies in, or p itself.
uintptr_t end_of_array(uintptr_t p) {
  auto* array = std::upper_bound(launch->arrays, launch->arrays + launch->count, p,
                                 [](uintptr_t p, const uintptr_t(&a)[2]) { return p < a[1]; });
  return array != launch->arrays + launch->count && p >= (*array)[0] ? (*array)[1] : p;
}

// The number of the block that runs; what is known of the one before is gone.
unsigned block_now() {
  unsigned block = now.block.x + now.blocks.x * (now.block.y + now.blocks.y * now.block.z);
  if (block != running) fenced.clear(), taken.clear();
  return running = block;
}

enum Kind { READ, WRITE, ATOMIC };
const char* const NAMES[] = {"read", "write", "atomic"};

// Reports begin with @offset of the instruction in this library: compiler.py turns that into file:line.
void check(uintptr_t p, size_t size, Kind kind, size_t at) {
  const char* stack = threads[current].fiber->stack;
  bool dynamic = within(p, now.dynamic, now.dynamic + sizeof now.dynamic);
  bool block_owned = dynamic || within(p, shared, shared_end);
  if (within(p, stack, stack + STACK)) return;
  if (kind == READ && !dynamic && within(p, __ehdr_start, _end)) return;  // constants
  uintptr_t end = dynamic       ? uintptr_t(now.dynamic) + launch->dynamic
                  : block_owned ? uintptr_t(shared_end)
                                : end_of_array(p);
  if (p + size > end) return fail("@%zx out-of-bounds %s of %zu bytes", at, NAMES[kind], size);
  unsigned block = block_now();
  accesses++;
  for (uintptr_t q = p; q < p + size;) {
    std::vector<Word>& page = words[q / 1024];
    if (page.empty()) page.resize(256);
    Word& word = page[q % 1024 / 4];
    Access mine{launches, block, barriers, warps[current / 32].fences, accesses, current, 0, kind == ATOMIC};
    for (uintptr_t stop = std::min(p + size, q / 4 * 4 + 4); q < stop; q++) mine.bytes |= 1 << q % 4;
    for (const Access* other : {&word.write, &word.read, &word.read_in_warp, &word.read_elsewhere}) {
      bool write = other == &word.write, both_atomic = other->atomic && kind == ATOMIC;
      if (kind == READ && !write) break;
      if (!(other->bytes & mine.bytes) || both_atomic || ordered(*other, mine, block_owned)) continue;
      return fail("@%zx race: %s of %s memory, after a %s by thread %d of block %u with no barrier between", at,
                  NAMES[kind], block_owned ? "shared" : "global", NAMES[other->atomic ? ATOMIC : write ? WRITE : READ],
                  other->thread, other->block);
    }
    if (block_owned && kind != WRITE && (word.write.launch != launches || word.write.block != block))
      return fail("@%zx %s of shared memory that the block has not written", at, NAMES[kind]);
    if (kind != READ) {
      word.write = mine;
    } else {
      if (!same_warp(word.read, mine)) word.read_elsewhere = word.read;
      else if (word.read.thread != current) word.read_in_warp = word.read;
      word.read = mine;
    }
  }
}

void watch(void* p, size_t size, Kind kind, void* instruction) {
  if (!watching) return;
  watching = false;
  check(uintptr_t(p), size, kind, static_cast<char*>(instruction) - __ehdr_start - 1);
  watching = true;
}

}  // namespace

void start_checks() {
  launches++;
  handed.clear(), fenced.clear(), taken.clear();
  if (words.size() > 4096) words.clear();  // by now they take 100 MB
}

void atomic_access(void* p, size_t size) {
  if (!launch->arrays) return;
  watch(p, size, ATOMIC, __builtin_return_address(0));
  block_now();
  std::vector<Fence>& here = handed[uintptr_t(p)];
  taken.push_back({uintptr_t(p), here.size(), current, false, 0});
  if (auto mine = fenced.find(current); mine != fenced.end()) here.push_back(mine->second);
}

void fence_memory() {
  if (!launch->arrays) return;
  fenced[current] = {block_now(), current, unsigned(barriers), ++accesses};
  for (Taken& to : taken)
    if (to.thread == current && !to.fenced) to.fenced = true, to.barriers = unsigned(barriers);
}

}  // namespace emulated

// What g++ calls: before each access, and where something is about to happen that C++ or CUDA leaves undefined.
extern "C" {
#define ACCESSES(n)                                                                                             \
  void __tsan_read##n(void* p) { emulated::watch(p, n, emulated::READ, __builtin_return_address(0)); }            \
  void __tsan_write##n(void* p) { emulated::watch(p, n, emulated::WRITE, __builtin_return_address(0)); }          \
  void __tsan_unaligned_read##n(void* p) { emulated::watch(p, n, emulated::READ, __builtin_return_address(0)); }  \
  void __tsan_unaligned_write##n(void* p) { emulated::watch(p, n, emulated::WRITE, __builtin_return_address(0)); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void* p, size_t n) { emulated::watch(p, n, emulated::READ, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t n) { emulated::watch(p, n, emulated::WRITE, __builtin_return_address(0)); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

struct Place {
  const char* file;
  unsigned line, column;
};
#define FORBIDDEN(name, what) \
  void __ubsan_handle_##name(Place* place) { emulated::fail("%s:%u: " what, place->file, place->line); }
FORBIDDEN(out_of_bounds, "index out of the array's bounds")
FORBIDDEN(type_mismatch_v1, "misaligned access")
FORBIDDEN(add_overflow, "integer overflow")
FORBIDDEN(sub_overflow, "integer overflow")
FORBIDDEN(mul_overflow, "integer overflow")
FORBIDDEN(negate_overflow, "integer overflow")
FORBIDDEN(divrem_overflow, "integer division by zero, or overflow")
FORBIDDEN(shift_out_of_bounds, "shift by more bits than there are")
}
