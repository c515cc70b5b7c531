// A CUDA driver for a machine without a GPU: what the real CuPy calls of libcuda and of the runtime library.
//
// Memory on the GPU is the host's. Streams work at once, in the order of the calls. A module is the path of a library
// that emulation/compiler.py made of the kernels' text, so a launch computes; any other image is taken, and its
// launches compute nothing. It says that it is an H100, with 80 GiB. While a stream captures, this driver is stricter
// than CUDA: it refuses every allocation, every copy from or to the host, every wait and whatever goes to another
// stream. Each refusal is kept as a sentence.
#include <cuda.h>
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "launch.h"

#undef cudaGetDeviceProperties  // a macro of CUDA 12's headers

namespace {

constexpr size_t MEMORY = 80ull << 30, SHARED = 48 << 10, MOST_SHARED = 227 << 10;
constexpr int MULTIPROCESSORS = 132, COMPUTE_CAPABILITY = 90;  // an H100's

struct Library {  // of kernels; `handle` is null if it computes nothing
  void* handle;
};

struct Function {
  std::string name;
  bool (*run)(const emulated::Launch&, void**);
  std::vector<size_t> sizes;  // of the arguments, in bytes
  int shared = SHARED;        // bytes of dynamic shared memory that a launch may ask for
};

struct Recording {
  std::vector<std::function<int()>> nodes;
};

struct Stream {
  unsigned flags = 0;
  std::unique_ptr<Recording> recording;
};

std::recursive_mutex one;  // call at a time
std::map<uintptr_t, size_t> blocks;
std::map<std::string, long> counts;
std::string faults, last_fault, recorded;  // sentences, the last of them, and names of nodes: a line each
size_t in_use;
bool computes = true;
Stream legacy, *capturing;

int refuse(int error, const std::string& why) {
  last_fault = why;
  faults += why + "\n";
  return error;
}

// Of what can't be done while a stream captures.
int outside_of_captures(const char* call) {
  return capturing ? refuse(cudaErrorStreamCaptureUnsupported, std::string(call) + " while a stream captures") : 0;
}

Stream* stream_of(void* handle) { return uintptr_t(handle) <= 2 ? &legacy : static_cast<Stream*>(handle); }

// Do it now, or at each launch of the graph that the stream records.
int submit(void* handle, const std::string& what, std::function<int()> work) {
  Stream* stream = stream_of(handle);
  if (stream->recording) {
    stream->recording->nodes.push_back(std::move(work));
    recorded += what + "\n";
    return 0;
  }
  if (capturing) return refuse(cudaErrorStreamCaptureImplicit, what + " on another stream than the one that captures");
  return work();
}

bool on_gpu(const void* p, size_t size) {
  auto after = blocks.upper_bound(uintptr_t(p));
  if (after == blocks.begin()) return false;
  auto [start, length] = *--after;
  return uintptr_t(p) + size <= start + length;
}

int copy(void* to, const void* from, size_t size, int kind, void* stream) {
  bool there = on_gpu(to, size), here = on_gpu(from, size);
  bool expected[] = {!there && !here, there && !here, !there && here, there && here, true};
  if (size && !expected[kind])
    return refuse(cudaErrorInvalidValue, "a copy of kind " + std::to_string(kind) + ", with other memory than it says");
  if (!(there && here)) {
    counts["copies between host and GPU"]++;
    if (stream_of(stream)->recording || capturing)
      return refuse(cudaErrorStreamCaptureUnsupported,
                    "a copy " + std::string(there ? "from" : "to") + " the host while a stream captures");
  }
  if (here && !there && !computes)  // what lies there was not computed, but left by another array
    return submit(stream, "a copy", [=] { return memset(to, 0, size), 0; });
  return submit(stream, "a copy", [=] { return memcpy(to, from, size), 0; });
}

size_t size_of(const std::string& type) {  // as emulated::type_name says it
  if (type.back() == '*') return sizeof(void*);
  if (type == "bool") return 1;
  size_t number = std::stoul(type.substr(type.find_first_of("0123456789")));
  return type.starts_with("struct") ? number : number / 8;
}

int launch(Function* f, dim3 grid, dim3 block, unsigned shared, void* stream, void** arguments) {
  counts["launches"]++;
  std::string what = "kernel " + f->name;
  bool fits = grid.x && grid.y && grid.z && grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535 && block.x &&
              block.y && block.z && block.z <= 64 && size_t(block.x) * block.y * block.z <= 1024 &&
              shared <= unsigned(f->shared);
  if (!fits) return refuse(CUDA_ERROR_INVALID_VALUE, what + ": no such grid, block or shared memory");
  if (!f->run) return submit(stream, what, [] { return 0; });
  auto values = std::make_shared<std::vector<std::string>>();
  for (size_t i = 0; i < f->sizes.size(); i++) values->emplace_back(static_cast<char*>(arguments[i]), f->sizes[i]);
  return submit(stream, what, [=] {
    char error[1000] = "";
    std::vector<void*> addresses;
    for (auto& value : *values) addresses.push_back(value.data());
    emulated::Launch how{{grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared, 2, 0, 0, nullptr, error};
    return f->run(how, addresses.data()) ? 0 : refuse(CUDA_ERROR_LAUNCH_FAILED, what + ": " + error);
  });
}

}  // namespace

extern "C" {

// ---- What the tests ask

const char* driver_faults() { return faults.c_str(); }
const char* driver_nodes() { return recorded.c_str(); }
void driver_forget() { faults.clear(), recorded.clear(); }
long driver_count(const char* what) { return counts[what]; }
int driver_owns(const void* p, size_t size) { return on_gpu(p, size); }
void driver_computes(int yes) { computes = yes; }
int driver_refuse(const char* call) { return refuse(cudaErrorNotSupported, std::string(call) + ": not in this driver"); }
int driver_submit(void* stream, int (*work)()) { return submit(stream, "a matrix product", work); }

// ---- The runtime library

#define LOCKED std::lock_guard<std::recursive_mutex> held(one)
#define RUNTIME(name, ...) cudaError_t name(__VA_ARGS__)
#define DO(...) { LOCKED; __VA_ARGS__; return cudaSuccess; }
#define ASK(value) { LOCKED; return cudaError_t(value); }

const char* cudaGetErrorName(cudaError_t e) {
  return e == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : e == cudaErrorNotSupported ? "cudaErrorNotSupported"
         : e == cudaErrorStreamCaptureUnsupported ? "cudaErrorStreamCaptureUnsupported" : "cudaError";
}
const char* cudaGetErrorString(cudaError_t) { return last_fault.c_str(); }
RUNTIME(cudaGetLastError) { return cudaSuccess; }
RUNTIME(cudaDriverGetVersion, int* v) DO(*v = CUDART_VERSION)
RUNTIME(cudaRuntimeGetVersion, int* v) DO(*v = CUDART_VERSION)
RUNTIME(cudaGetDevice, int* d) DO(*d = 0)
RUNTIME(cudaSetDevice, int d) ASK(d ? cudaErrorInvalidDevice : cudaSuccess)
RUNTIME(cudaGetDeviceCount, int* n) DO(*n = 1)
RUNTIME(cudaDeviceGetAttribute, int* v, cudaDeviceAttr a, int) {
  switch (a) {
    case cudaDevAttrMaxThreadsPerBlock: *v = 1024; break;
    case cudaDevAttrMaxBlockDimX: case cudaDevAttrMaxBlockDimY: *v = 1024; break;
    case cudaDevAttrMaxBlockDimZ: *v = 64; break;
    case cudaDevAttrMaxGridDimX: *v = 0x7fffffff; break;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *v = 65535; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *v = SHARED; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *v = MOST_SHARED; break;
    case cudaDevAttrWarpSize: *v = 32; break;
    case cudaDevAttrMultiProcessorCount: *v = MULTIPROCESSORS; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *v = 2048; break;
    case cudaDevAttrComputeCapabilityMajor: *v = COMPUTE_CAPABILITY / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *v = COMPUTE_CAPABILITY % 10; break;
    case cudaDevAttrMemoryPoolsSupported: *v = 0; break;
    default: return cudaError_t(refuse(cudaErrorNotSupported, "attribute " + std::to_string(a) + " of the device"));
  }
  return cudaSuccess;
}
RUNTIME(cudaGetDeviceProperties, cudaDeviceProp* p, int) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "no GPU, kernels run on the CPU");
  p->major = COMPUTE_CAPABILITY / 10, p->minor = COMPUTE_CAPABILITY % 10;
  p->multiProcessorCount = MULTIPROCESSORS, p->totalGlobalMem = MEMORY;
  p->warpSize = 32, p->maxThreadsPerBlock = 1024, p->sharedMemPerBlock = SHARED;
  return cudaSuccess;
}
RUNTIME(cudaDeviceSynchronize) ASK(outside_of_captures("cudaDeviceSynchronize"))

RUNTIME(cudaMalloc, void** p, size_t size) {
  LOCKED;
  counts["allocations"]++;
  if (int error = outside_of_captures("cudaMalloc")) return cudaError_t(error);
  if (in_use + size > MEMORY) return cudaErrorMemoryAllocation;
  *p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (*p == MAP_FAILED) return cudaErrorMemoryAllocation;
  if (computes) memset(*p, 0xff, size);  // floats: NaN
  blocks[uintptr_t(*p)] = size, in_use += size;
  return cudaSuccess;
}
RUNTIME(cudaFree, void* p) {
  LOCKED;
  if (int error = outside_of_captures("cudaFree")) return cudaError_t(error);
  auto found = blocks.find(uintptr_t(p));
  if (found == blocks.end()) return p ? cudaError_t(refuse(cudaErrorInvalidValue, "cudaFree of no array")) : cudaSuccess;
  in_use -= found->second;
  munmap(p, found->second);  // a graph that still uses it ends the process
  blocks.erase(found);
  return cudaSuccess;
}
RUNTIME(cudaHostAlloc, void** p, size_t size, unsigned) {
  LOCKED;
  if (int error = outside_of_captures("cudaHostAlloc")) return cudaError_t(error);
  return (*p = malloc(size)) ? cudaSuccess : cudaErrorMemoryAllocation;
}
RUNTIME(cudaFreeHost, void* p) DO(free(p))
RUNTIME(cudaMemGetInfo, size_t* free, size_t* total) DO(*total = MEMORY, *free = MEMORY - in_use)
RUNTIME(cudaPointerGetAttributes, cudaPointerAttributes* a, const void* p) {
  LOCKED;
  memset(a, 0, sizeof *a);
  if (on_gpu(p, 1)) a->type = cudaMemoryTypeDevice, a->devicePointer = const_cast<void*>(p);
  return cudaSuccess;
}

RUNTIME(cudaMemcpy, void* to, const void* from, size_t n, cudaMemcpyKind kind) ASK(copy(to, from, n, kind, nullptr))
RUNTIME(cudaMemcpyAsync, void* to, const void* from, size_t n, cudaMemcpyKind kind, cudaStream_t s)
    ASK(copy(to, from, n, kind, s))
RUNTIME(cudaMemset, void* p, int v, size_t n) ASK(submit(nullptr, "cudaMemset", [=] { return memset(p, v, n), 0; }))
RUNTIME(cudaMemsetAsync, void* p, int v, size_t n, cudaStream_t s)
    ASK(submit(s, "cudaMemsetAsync", [=] { return memset(p, v, n), 0; }))

RUNTIME(cudaStreamCreateWithFlags, cudaStream_t* s, unsigned flags) {
  auto made = new Stream;
  made->flags = flags;
  *s = reinterpret_cast<cudaStream_t>(made);
  return cudaSuccess;
}
RUNTIME(cudaStreamCreate, cudaStream_t* s) { return cudaStreamCreateWithFlags(s, 0); }
RUNTIME(cudaStreamCreateWithPriority, cudaStream_t* s, unsigned flags, int) { return cudaStreamCreateWithFlags(s, flags); }
RUNTIME(cudaStreamGetFlags, cudaStream_t s, unsigned* flags) DO(*flags = stream_of(s)->flags)
RUNTIME(cudaStreamGetPriority, cudaStream_t, int* p) DO(*p = 0)
RUNTIME(cudaStreamDestroy, cudaStream_t s) DO(delete stream_of(s))
RUNTIME(cudaStreamSynchronize, cudaStream_t) ASK(outside_of_captures("cudaStreamSynchronize"))
RUNTIME(cudaStreamQuery, cudaStream_t) ASK(outside_of_captures("cudaStreamQuery"))
RUNTIME(cudaStreamWaitEvent, cudaStream_t, cudaEvent_t, unsigned) ASK(outside_of_captures("cudaStreamWaitEvent"))
RUNTIME(cudaStreamIsCapturing, cudaStream_t s, cudaStreamCaptureStatus* status)
    DO(*status = stream_of(s)->recording ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone)
RUNTIME(cudaStreamBeginCapture, cudaStream_t s, cudaStreamCaptureMode) {
  LOCKED;
  if (stream_of(s) == &legacy || capturing) return cudaError_t(refuse(cudaErrorStreamCaptureUnsupported, "this capture"));
  capturing = stream_of(s);
  capturing->recording = std::make_unique<Recording>();
  return cudaSuccess;
}
RUNTIME(cudaStreamEndCapture, cudaStream_t s, cudaGraph_t* graph) {
  LOCKED;
  if (!stream_of(s)->recording) return cudaErrorIllegalState;
  counts["captures"]++;
  counts["nodes"] += stream_of(s)->recording->nodes.size();
  *graph = reinterpret_cast<cudaGraph_t>(stream_of(s)->recording.release());
  capturing = nullptr;
  return cudaSuccess;
}
RUNTIME(cudaGraphInstantiate, cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = reinterpret_cast<cudaGraphExec_t>(new Recording(*reinterpret_cast<Recording*>(graph)));
  return cudaSuccess;
}
RUNTIME(cudaGraphDestroy, cudaGraph_t graph) DO(delete reinterpret_cast<Recording*>(graph))
RUNTIME(cudaGraphExecDestroy, cudaGraphExec_t exec) DO(delete reinterpret_cast<Recording*>(exec))
RUNTIME(cudaGraphUpload, cudaGraphExec_t, cudaStream_t) ASK(outside_of_captures("cudaGraphUpload"))
RUNTIME(cudaGraphLaunch, cudaGraphExec_t exec, cudaStream_t) {
  LOCKED;
  counts["launches of graphs"]++;
  if (int error = outside_of_captures("cudaGraphLaunch")) return cudaError_t(error);
  for (auto& node : reinterpret_cast<Recording*>(exec)->nodes)
    if (int error = node()) return cudaError_t(error);
  return cudaSuccess;
}

RUNTIME(cudaEventCreateWithFlags, cudaEvent_t* e, unsigned) DO(*e = reinterpret_cast<cudaEvent_t>(new char))
RUNTIME(cudaEventCreate, cudaEvent_t* e) { return cudaEventCreateWithFlags(e, 0); }
RUNTIME(cudaEventDestroy, cudaEvent_t e) DO(delete reinterpret_cast<char*>(e))
RUNTIME(cudaEventRecord, cudaEvent_t, cudaStream_t) ASK(outside_of_captures("cudaEventRecord"))
RUNTIME(cudaEventQuery, cudaEvent_t) ASK(outside_of_captures("cudaEventQuery"))
RUNTIME(cudaEventSynchronize, cudaEvent_t) ASK(outside_of_captures("cudaEventSynchronize"))

// ---- The driver

CUresult cuGetErrorName(CUresult, const char** text) { return *text = "CUDA_ERROR", CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult, const char** text) { return *text = last_fault.c_str(), CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext* context) { return *context = reinterpret_cast<CUcontext>(&legacy), CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice* device) { return *device = 0, CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice) { return CUDA_SUCCESS; }

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  LOCKED;
  if (int error = outside_of_captures("cuModuleLoadData")) return CUresult(error);
  bool path = *static_cast<const char*>(image) == '/';
  void* handle = path ? dlopen(static_cast<const char*>(image), RTLD_NOW) : nullptr;
  if (path && !handle) return CUresult(refuse(CUDA_ERROR_INVALID_IMAGE, dlerror()));
  *module = reinterpret_cast<CUmodule>(new Library{handle});
  return CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule module) { return delete reinterpret_cast<Library*>(module), CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  LOCKED;
  auto* made = new Function{name, nullptr, {}};  // never freed: graphs go on with it
  if (void* handle = reinterpret_cast<Library*>(module)->handle) {
    made->run = reinterpret_cast<decltype(made->run)>(dlsym(handle, ("run_" + made->name).c_str()));
    auto types = reinterpret_cast<const char* (*)()>(dlsym(handle, ("types_" + made->name).c_str()));
    if (!made->run) return CUresult(refuse(CUDA_ERROR_NOT_FOUND, "there is no kernel " + made->name));
    std::string all = types();
    for (size_t i = 0; i < all.size();) {
      size_t end = std::min(all.find(", ", i), all.size());
      made->sizes.push_back(size_of(all.substr(i, end - i)));
      i = end + 2;
    }
  }
  *function = reinterpret_cast<CUfunction>(made);
  return CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction function) {
  auto* f = reinterpret_cast<Function*>(function);
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK           ? 1024
           : attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES ? f->shared
                                                                          : 0;
  return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  LOCKED;
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value > int(MOST_SHARED))
    return CUresult(refuse(CUDA_ERROR_INVALID_VALUE, "this attribute of a kernel"));
  reinterpret_cast<Function*>(function)->shared = value;
  return CUDA_SUCCESS;
}
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction, int, size_t) {
  return *blocks = 2, CUDA_SUCCESS;
}
CUresult cuOccupancyMaxPotentialBlockSize(int* grid, int* block, CUfunction, CUoccupancyB2DSize, size_t, int limit) {
  return *grid = MULTIPROCESSORS, *block = limit ? std::min(limit, 256) : 256, CUDA_SUCCESS;
}
CUresult cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                        unsigned bz, unsigned shared, CUstream stream, void** arguments, void**) {
  LOCKED;
  return CUresult(launch(reinterpret_cast<Function*>(function), {gx, gy, gz}, {bx, by, bz}, shared, stream, arguments));
}
}
