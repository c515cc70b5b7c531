// Arrays, one behind the other, in a flat one (flat.py).

#define TENSORS 128

struct Table {  // comes by value, as part of the launch
  const real* from[TENSORS];
  int start[TENSORS], size[TENSORS];
};

// flat[start ... start + size - 1] = from, for each tensor: blocks (x, tensor)
extern "C" __global__ void gather(real* flat, Table table) {
  int tensor = blockIdx.y, start = table.start[tensor], size = table.size[tensor];
  const real* from = table.from[tensor];
  for (int i = THREAD; i < size; i += STRIDE) flat[start + i] = from[i];
}
