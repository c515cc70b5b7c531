// CUDA's kernel language for g++: what the text of a .cu file sees when it is compiled for the CPU.
// machine.cpp runs it, compiler.py puts the two together. In checked code (-fsanitize) every access asks machine.cpp.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <source_location>
#include <string>
#include <type_traits>
#include <utility>

#include "launch.h"

#define CUDA_ON_CPU
#define __global__ __attribute__((noipa))  // never inlined: inside of unchecked code it would not be checked
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static thread_local  // the library's only ones: so machine.cpp finds them all in one place
#define UNCHECKED __attribute__((no_sanitize("thread")))

#define VECTORS(T, name)                                                                      \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                                          \
  struct name##3 { T x, y, z; };                                                              \
  struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; };          \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                  \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                          \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTORS(unsigned char, uchar)
VECTORS(int, int)
VECTORS(unsigned, uint)
VECTORS(long long, longlong)
VECTORS(unsigned long long, ulonglong)
VECTORS(float, float)
VECTORS(double, double)
typedef uint3 dim3;

namespace emulated {

using Site = std::source_location;  // of a call in the .cu text

struct Now {  // what the running thread sees of the machine
  uint3 thread, block;
  dim3 threads, blocks;
  int lane;
  alignas(128) char dynamic[64 << 10];  // shared memory asked for at launch: as much as the smallest GPU of ours has
};
extern Now now;

bool run(const Launch& launch, void (*kernel)(void**), void** arguments);
void barrier(Site site);
void exchange(unsigned mask, void* record, void (*complete)(void** lanes), Site site);
void atomic_access(void* address, size_t size);
void fence_memory();

// ---- A kernel as compiler.py calls it: run_NAME(launch, addresses of the arguments), types_NAME() = "float32*, int32"

template <class T>
std::string type_name() {
  using U = std::remove_cv_t<T>;
  if constexpr (std::is_pointer_v<U>) return type_name<std::remove_pointer_t<U>>() + "*";
  else if constexpr (std::is_same_v<U, bool>) return "bool";
  else if constexpr (std::is_floating_point_v<U>) return "float" + std::to_string(8 * sizeof(U));
  else if constexpr (std::is_signed_v<U>) return "int" + std::to_string(8 * sizeof(U));
  else if constexpr (std::is_integral_v<U>) return "uint" + std::to_string(8 * sizeof(U));
  else return "struct of " + std::to_string(sizeof(U));
}

template <auto kernel>
struct Kernel;
template <class... A, void (*kernel)(A...)>
struct Kernel<kernel> {
  static std::string types() {
    std::string all;
    ((all += (all.empty() ? "" : ", ") + type_name<A>()), ...);
    return all;
  }
  template <size_t... I>
  UNCHECKED static void call(void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<A>*>(arguments[I])...);
  }
  UNCHECKED static void call(void** arguments) { call(arguments, std::index_sequence_for<A...>()); }
};

#define EXPORT extern "C" __attribute__((visibility("default")))
#define KERNEL(name)                                                                                                  \
  EXPORT bool run_##name(const emulated::Launch& launch, void** arguments) {                                      \
    return emulated::run(launch, emulated::Kernel<name>::call, arguments);                                            \
  }                                                                                                                   \
  EXPORT const char* types_##name() {                                                                             \
    static std::string all = emulated::Kernel<name>::types();                                                         \
    return all.c_str();                                                                                               \
  }

// ---- Warp functions: each lane brings a record, and the last one to come completes all of them.

template <class T>
struct Shuffle {
  T value, result;
  int source;
};

template <class T>
T shuffle(unsigned mask, T value, int source, Site site) {
  static_assert(std::is_arithmetic_v<T>, "CUDA shuffles numbers only");
  Shuffle<T> mine{value, value, source};
  exchange(mask, &mine, [](void** lanes) {
    for (int l = 0; l < 32; l++) {
      if (!lanes[l]) continue;
      auto* to = static_cast<Shuffle<T>*>(lanes[l]);
      auto* from = static_cast<Shuffle<T>*>(lanes[to->source]);
      if (from) to->result = from->value;
      else memset(&to->result, 0xff, sizeof(T));  // no such lane in the mask: anything, on a GPU
    }
  }, site);
  return mine.result;
}

struct Vote {
  bool value;
  unsigned result;
};

inline unsigned ballot(unsigned mask, bool value, Site site) {
  Vote mine{value, 0};
  exchange(mask, &mine, [](void** lanes) {
    unsigned result = 0;
    for (int l = 0; l < 32; l++) if (lanes[l]) result |= unsigned(static_cast<Vote*>(lanes[l])->value) << l;
    for (int l = 0; l < 32; l++) if (lanes[l]) static_cast<Vote*>(lanes[l])->result = result;
  }, site);
  return mine.result;
}

inline void fence(void**) {}  // of __syncwarp: machine.cpp knows it by its address

// float -> TF32 as cvt.rna.tf32.f32 does it: 10 bits of mantissa, to nearest, ties away from zero.
inline unsigned to_tf32(float x) {
  unsigned bits;
  memcpy(&bits, &x, 4);
  return isfinite(x) ? (bits + 0x1000) & 0xffffe000 : bits;
}

// Four (8, 4) matrices of 32-bit numbers as ldmatrix.m8n8.x4.b16 loads them: lane 8 i + r brings the address of row r
// of matrix i, and lane 4 g + t gets element (g, t) of each.
struct [[gnu::may_alias]] alignas(16) Row { unsigned v[4]; };
struct Matrices {
  Row row;
  unsigned result[4];
};

inline void ldmatrix(unsigned (&d)[4], const void* row, Site site = Site::current()) {
  Matrices mine{*static_cast<const Row*>(row)};
  exchange(~0u, &mine, [](void** lanes) {
    for (int l = 0; l < 32; l++)
      for (int i = 0; lanes[l] && i < 4; i++) {
        auto* from = static_cast<Matrices*>(lanes[8 * i + l / 4]);
        static_cast<Matrices*>(lanes[l])->result[i] = from ? from->row.v[l % 4] : ~0u;
      }
  }, site);
  for (int i = 0; i < 4; i++) d[i] = mine.result[i];
}

// ---- Asynchronous copies: until the wait that covers it, the target holds NaN.

struct Copy {
  void* to;
  alignas(16) char value[32];
  void (*finish)(const Copy&);
};
void hold(const Copy& copy);                // in the running thread's group that is still open
void end_group();
bool take(int groups, Copy* copy);          // the thread's oldest copy, unless it belongs to its last so many groups

template <class T>
void start_copy(T* to, const T* from, bool wanted) {
  Copy copy;
  T value = wanted ? *from : T{}, none;
  memset(&none, 0xff, sizeof none);
  memcpy(copy.value, &value, sizeof value);
  copy.to = to;
  copy.finish = [](const Copy& copy) {
    T value;
    memcpy(&value, copy.value, sizeof value);
    *static_cast<T*>(copy.to) = value;
  };
  *to = none;
  hold(copy);
}

inline void wait_for_all_but(int groups) {
  for (Copy copy; take(groups, &copy);) copy.finish(copy);
}

struct Fragments {
  float d[4];
  unsigned a[4], b[2];
};

// d += a b by a warp, as mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32: a is (16, 8), b (8, 8), d (16, 8).
// Lane l = 4 g + t holds a[i] = A[g + 8 (i % 2)][t + 4 (i / 2)], b[i] = B[t + 4 i][g] and
// d[i] = D[g + 8 (i / 2)][2 t + i % 2]. The 13 lowest bits of a and b are ignored.
inline void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], Site site = Site::current()) {
  Fragments mine;
  for (int i = 0; i < 4; i++) mine.d[i] = d[i], mine.a[i] = a[i], mine.b[i % 2] = b[i % 2];
  exchange(~0u, &mine, [](void** lanes) {
    auto value = [](unsigned bits) { bits &= 0xffffe000; float x; memcpy(&x, &bits, 4); return x; };
    float A[16][8], B[8][8];
    for (int l = 0; l < 32; l++) {
      auto* lane = static_cast<Fragments*>(lanes[l]);
      for (int i = 0; i < 4; i++) A[l / 4 + 8 * (i % 2)][l % 4 + 4 * (i / 2)] = lane ? value(lane->a[i]) : NAN;
      for (int i = 0; i < 2; i++) B[l % 4 + 4 * i][l / 4] = lane ? value(lane->b[i]) : NAN;
    }
    for (int l = 0; l < 32; l++)
      for (int i = 0; lanes[l] && i < 4; i++)
        for (int k = 0; k < 8; k++)
          static_cast<Fragments*>(lanes[l])->d[i] += A[l / 4 + 8 * (i / 2)][k] * B[k][2 * (l % 4) + i % 2];
  }, site);
  for (int i = 0; i < 4; i++) d[i] = mine.d[i];
}

template <class T, class F>
UNCHECKED T atomic(T* p, F change) {
  static_assert(std::is_integral_v<T>, "a sum of floats in any order is not deterministic: no atomics of floats");
  atomic_access(p, sizeof(T));
  T old = *p;
  *p = change(old);
  return old;
}

}  // namespace emulated

// ---- CUDA's names

#define threadIdx (emulated::now.thread)
#define blockIdx (emulated::now.block)
#define blockDim (emulated::now.threads)
#define gridDim (emulated::now.blocks)
#define warpSize 32
#define SITE emulated::Site site = emulated::Site::current()

inline void __syncthreads(SITE) { emulated::barrier(site); }
inline void __syncwarp(unsigned mask = ~0u, SITE) { emulated::exchange(mask, nullptr, emulated::fence, site); }
inline void __threadfence() { emulated::fence_memory(); }
inline void __threadfence_block() {}

// Lanes are exchanged within groups of `width`; a lane that would reach out of its group gets its own value.
template <class T>
T __shfl_sync(unsigned mask, T v, int source, int width = 32, SITE) {
  int group = emulated::now.lane & -width;
  return emulated::shuffle(mask, v, group + (source & (width - 1)), site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int lanes, int width = 32, SITE) {
  int lane = emulated::now.lane, source = lane ^ lanes;
  return emulated::shuffle(mask, v, source < (lane & -width) + width ? source : lane, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, int lanes, int width = 32, SITE) {
  int lane = emulated::now.lane, source = lane + lanes;
  return emulated::shuffle(mask, v, source < (lane & -width) + width ? source : lane, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, int lanes, int width = 32, SITE) {
  int lane = emulated::now.lane, source = lane - lanes;
  return emulated::shuffle(mask, v, source >= (lane & -width) ? source : lane, site);
}
inline unsigned __ballot_sync(unsigned mask, int v, SITE) { return emulated::ballot(mask, v, site); }
inline int __any_sync(unsigned mask, int v, SITE) { return emulated::ballot(mask, v, site) != 0; }
inline int __all_sync(unsigned mask, int v, SITE) { return emulated::ballot(mask, !v, site) == 0; }

template <class T>
T atomicAdd(T* p, std::type_identity_t<T> v) { return emulated::atomic(p, [=](T old) { return T(old + v); }); }
template <class T>
T atomicSub(T* p, std::type_identity_t<T> v) { return emulated::atomic(p, [=](T old) { return T(old - v); }); }
template <class T>
T atomicMax(T* p, std::type_identity_t<T> v) { return emulated::atomic(p, [=](T old) { return std::max(old, v); }); }
template <class T>
T atomicMin(T* p, std::type_identity_t<T> v) { return emulated::atomic(p, [=](T old) { return std::min(old, v); }); }
template <class T>
T atomicExch(T* p, std::type_identity_t<T> v) { return emulated::atomic(p, [=](T) { return v; }); }
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
  return emulated::atomic(p, [=](T old) { return old == expected ? v : old; });
}
inline unsigned atomicInc(unsigned* p, unsigned last) {
  return emulated::atomic(p, [=](unsigned old) { return old >= last ? 0 : old + 1; });
}

using std::max;
using std::min;
template <class T>
T __ldg(const T* p) { return *p; }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline float rsqrt(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline double cospi(double x) { return cos(M_PI * x); }
inline double sinpi(double x) { return sin(M_PI * x); }
inline float cospif(float x) { return float(cos(M_PI * x)); }
inline float sinpif(float x) { return float(sin(M_PI * x)); }
inline void sincospi(double x, double* s, double* c) { *s = sinpi(x), *c = cospi(x); }
inline void sincospif(float x, float* s, float* c) { *s = sinpif(x), *c = cospif(x); }
inline unsigned __umulhi(unsigned x, unsigned y) { return unsigned((unsigned long long)x * y >> 32); }
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
  return (unsigned long long)((unsigned __int128)x * y >> 64);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
template <class To, class From>
To same_bits(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  memcpy(&y, &x, sizeof y);
  return y;
}
inline int __float_as_int(float x) { return same_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return same_bits<unsigned>(x); }
inline float __int_as_float(int x) { return same_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return same_bits<float>(x); }
inline long long __double_as_longlong(double x) { return same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return same_bits<double>(x); }
