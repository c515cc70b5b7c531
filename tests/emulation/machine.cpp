// The machine that runs a kernel on one CPU thread: fibers, barriers, warps, and the checks of each access.
//
// Blocks run one after another. Within a block a CUDA thread runs until it has to wait for others; the next one then
// runs on a stack of its own. A kernel that never waits never changes stacks.
#include <link.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <xmmintrin.h>

#include <deque>
#include <memory>
#include <random>
#include <vector>

#include "cuda_on_cpu.h"

extern "C" __attribute__((visibility("hidden"))) char __ehdr_start[], _end[];  // this library in memory

namespace emulated {

Now now;

namespace {

constexpr size_t STACK = 128 << 10, PAGE = 64 << 10;

struct Fiber {
  char* stack;
  bool begun = false;
  ucontext_t start;
  jmp_buf at;
};

enum State { NEW, READY, AT_BARRIER, AT_WARP, DONE };

struct Thread {
  uint3 index;
  State state;
  Fiber* fiber;
  Site site;  // where it waits, and for a warp function: with whom, with what, for what
  unsigned mask;
  void* record;
  void (*complete)(void**);
  std::deque<std::pair<unsigned, Copy>> copies;  // those under way, and the groups that they belong to
  unsigned group;                                // the one that is open
};

struct Warp {
  unsigned here, gone;  // lanes, a bit each: those that wait at a warp function, those that have returned
  unsigned fences;      // how many __syncwarp there were
};

const Launch* launch;
void (*kernel)(void**);
void** arguments;
std::vector<Thread> threads;
std::vector<int> order;       // in which the threads run
size_t next_in_order;
std::vector<Warp> warps;
unsigned barriers;            // the block's count of __syncthreads
int current, done;
bool failed, on_fiber, watching;  // watching: the kernel's own code runs, no function of this file
char *shared, *shared_end;  // the kernels' __shared__ variables
std::mt19937 random_numbers;
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Fiber*> idle;
jmp_buf scheduler;

const char* file_of(Site site) {
  const char* slash = strrchr(site.file_name(), '/');
  return slash ? slash + 1 : site.file_name();
}

bool same(Site a, Site b) { return a.line() == b.line() && !strcmp(a.file_name(), b.file_name()); }

// Report what went wrong and leave the kernel for good. The first report counts.
__attribute__((format(printf, 1, 2))) void fail(const char* format, ...) {
  if (!failed) {
    va_list values;
    va_start(values, format);
    int n = vsnprintf(launch->error, 700, format, values);
    va_end(values);
    snprintf(launch->error + std::min(n, 699), 300, " [block (%u, %u, %u), thread (%u, %u, %u)]", now.block.x,
             now.block.y, now.block.z, now.thread.x, now.thread.y, now.thread.z);
  }
  failed = true;
  if (on_fiber) _longjmp(scheduler, 1);
}

// ---- Fibers and warps

void wait() {  // until the scheduler comes back to this thread
  if (!_setjmp(threads[current].fiber->at)) _longjmp(scheduler, 1);
}

void become(int i) {
  current = i;
  now.thread = threads[i].index;
  now.lane = i % 32;
}

// Let the lanes of a warp that wait with this one go on, if all of its mask are there. Who has returned is not missed.
void settle(int lane) {
  Warp& warp = warps[lane / 32];
  Thread* lanes = &threads[lane / 32 * 32];
  const Thread& t = threads[lane];
  if (t.mask & ~(warp.here | warp.gone)) return;
  unsigned all = t.mask & warp.here;
  void* records[32] = {};
  for (int k = 0; k < 32; k++) {
    if (!(all >> k & 1)) continue;
    const Thread& other = lanes[k];
    if (other.mask != t.mask || other.complete != t.complete || !same(other.site, t.site))
      return fail("%s:%u: lane %d is at a warp function with mask %08x, lane %d at %s:%u with mask %08x",
                  file_of(t.site), t.site.line(), lane % 32, t.mask, k, file_of(other.site), other.site.line(),
                  other.mask);
    records[k] = other.record;
  }
  if (t.complete != fence) t.complete(records);
  else if ((t.mask | warp.gone) == ~0u) warp.fences++;  // among some lanes only it counts for none
  for (int k = 0; k < 32; k++) if (all >> k & 1) lanes[k].state = READY;
  warp.here &= ~all;
}

void live() {  // a fiber's life: the threads that have not begun, one after another
  for (;;) {
    Fiber* mine = threads[current].fiber;
    watching = true;
    kernel(arguments);
    watching = false;
    threads[current].state = DONE;
    done++;
    Warp& warp = warps[current / 32];
    warp.gone |= 1u << now.lane;
    for (int k = 0; warp.here && k < 32; k++) if (warp.here >> k & 1) settle(current / 32 * 32 + k);
    if (next_in_order < order.size() && threads[order[next_in_order]].state == NEW) {
      become(order[next_in_order++]);
      threads[current].fiber = mine;
    } else {
      idle.push_back(mine);
      if (!_setjmp(mine->at)) _longjmp(scheduler, 1);
    }
  }
}

Fiber* new_fiber() {
  auto* memory = static_cast<char*>(
      mmap(nullptr, PAGE + STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  mprotect(memory, PAGE, PROT_NONE);  // a stack that overflows ends the process, and spoils nothing
  fibers.push_back(std::make_unique<Fiber>());
  fibers.back()->stack = memory + PAGE;
  return fibers.back().get();
}

void resume(int i) {
  become(i);
  Thread& t = threads[i];
  if (t.state == NEW) {
    if (idle.empty()) idle.push_back(new_fiber());
    t.fiber = idle.back();
    idle.pop_back();
  }
  t.state = READY;
  on_fiber = true;
  if (_setjmp(scheduler)) {
    on_fiber = watching = false;
    return;
  }
  if (t.fiber->begun) _longjmp(t.fiber->at, 1);
  t.fiber->begun = true;
  getcontext(&t.fiber->start);
  t.fiber->start.uc_stack.ss_sp = t.fiber->stack;
  t.fiber->start.uc_stack.ss_size = STACK;
  makecontext(&t.fiber->start, live, 0);
  setcontext(&t.fiber->start);
}

void arrange(std::vector<int>& numbers) {
  for (size_t i = 0; i < numbers.size(); i++) numbers[i] = launch->order == 1 ? numbers.size() - 1 - i : i;
  if (launch->order == 2) std::shuffle(numbers.begin(), numbers.end(), random_numbers);
}

// Everybody waits or has returned: open the barrier, or say why it will never open.
void open_barrier() {
  Thread* first = nullptr;
  for (Thread& t : threads) if (t.state == AT_BARRIER && !first) first = &t;
  for (size_t i = 0; i < threads.size(); i++) {
    Thread& t = threads[i];
    if (t.state == AT_WARP) {
      become(i);
      return fail("%s:%u: a warp function waits for lanes of its mask %08x that never come", file_of(t.site),
                  t.site.line(), t.mask);
    }
    if (t.state == DONE) {
      become(i);
      return fail("%s:%u: __syncthreads waits for a thread that has returned", file_of(first->site),
                  first->site.line());
    }
    if (!same(t.site, first->site)) {
      become(i);
      return fail("%s:%u: divergent __syncthreads: others wait at %s:%u", file_of(t.site), t.site.line(),
                  file_of(first->site), first->site.line());
    }
  }
  for (Thread& t : threads) t.state = READY;
  barriers++;
}

void run_block() {
  for (Thread& t : threads) t.state = NEW, t.copies.clear(), t.group = 0;
  for (Warp& warp : warps) warp = {};
  if (threads.size() % 32) warps.back().gone = ~0u << threads.size() % 32;
  barriers = done = 0;
  memset(shared, 0xff, shared_end - shared);  // as floats: NaN
  memset(now.dynamic, 0xff, launch->dynamic);
  while (!failed) {
    bool moved = false;
    arrange(order);
    for (next_in_order = 0; next_in_order < order.size() && !failed;) {
      int i = order[next_in_order++];
      if (threads[i].state <= READY) resume(i), moved = true;
    }
    if (done == int(threads.size())) return;
    if (!moved) open_barrier();
  }
}

}  // namespace

int find_shared(dl_phdr_info* library, size_t, void*) {
  if (library->dlpi_addr != uintptr_t(__ehdr_start)) return 0;
  for (int i = 0; i < library->dlpi_phnum; i++) {
    if (library->dlpi_phdr[i].p_type != PT_TLS) continue;
    shared = static_cast<char*>(library->dlpi_tls_data);
    shared_end = shared + library->dlpi_phdr[i].p_memsz;
  }
  return 1;
}

thread_local volatile char one_more;  // there has to be one

void start_checks();

bool run(const Launch& what, void (*call)(void**), void** with) {
  struct Flushed {  // numbers below 2^-126 are 0, as -ftz=true has it, which CuPy always asks for; here doubles', too
    unsigned before = _mm_getcsr();
    Flushed() { _mm_setcsr(before | 0x8040); }
    ~Flushed() { _mm_setcsr(before); }
  } flushed;
  launch = &what, kernel = call, arguments = with;
  failed = false;
  random_numbers.seed(launch->seed);
  now.blocks = {launch->blocks[0], launch->blocks[1], launch->blocks[2]};
  now.threads = {launch->threads[0], launch->threads[1], launch->threads[2]};
  const auto [X, Y, Z] = now.threads;
  threads.assign(X * Y * Z, {});
  for (unsigned i = 0; i < threads.size(); i++) threads[i].index = {i % X, i / X % Y, i / X / Y};
  order.resize(threads.size());
  warps.resize((threads.size() + 31) / 32);
  start_checks();
  one_more = 0;  // their memory comes when one is touched
  dl_iterate_phdr(find_shared, nullptr);
  std::vector<int> blocks(size_t(now.blocks.x) * now.blocks.y * now.blocks.z);
  arrange(blocks);
  for (unsigned b : blocks) {
    now.block = {b % now.blocks.x, b / now.blocks.x % now.blocks.y, b / now.blocks.x / now.blocks.y};
    run_block();
    if (failed) break;
  }
  if (failed) {  // fibers that stopped midway begin anew
    idle.clear();
    for (auto& fiber : fibers) fiber->begun = false, idle.push_back(fiber.get());
  }
  return !failed;
}

void barrier(Site site) {
  threads[current].state = AT_BARRIER;
  threads[current].site = site;
  watching = false;
  wait();
  watching = true;
}

void hold(const Copy& copy) { threads[current].copies.emplace_back(threads[current].group, copy); }

void end_group() { threads[current].group++; }

bool take(int groups, Copy* copy) {
  Thread& t = threads[current];
  if (t.copies.empty() || t.copies.front().first + groups >= t.group) return false;
  *copy = t.copies.front().second;
  t.copies.pop_front();
  return true;
}

void exchange(unsigned mask, void* record, void (*complete)(void**), Site site) {
  Thread& t = threads[current];
  if (!(mask >> now.lane & 1))
    fail("%s:%u: lane %d is not in the mask %08x of the warp function it calls", file_of(site), site.line(), now.lane,
         mask);
  t.state = AT_WARP, t.site = site, t.mask = mask, t.record = record, t.complete = complete;
  warps[current / 32].here |= 1u << now.lane;
  watching = false;
  settle(current);
  if (t.state == AT_WARP) wait();
  watching = true;
}

}  // namespace emulated

#include "checks.h"
