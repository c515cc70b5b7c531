// A batch from a data set that lies on the GPU, as in batches.py.

// x[k] (S, S, C) = images[indices[k]] (H, H, C) / 127.5 - 1 in a frame of -1; mirrored where flips, if given, say so
extern "C" __global__ void assemble(float* x, const unsigned char* images, const long long* indices, const bool* flips,
                                    int count, int H, int S, int C) {
  int i = THREAD;
  if (i >= count * S * S * C) return;
  int c = i % C, column = i / C % S, row = i / C / S % S, k = i / C / S / S;
  row -= (S - H) / 2;
  column -= (S - H) / 2;
  if (flips && flips[k]) column = H - 1 - column;
  bool inside = 0 <= row && row < H && 0 <= column && column < H;
  x[i] = inside ? images[((indices[k] * H + row) * H + column) * C + c] / 127.5f - 1 : -1.0f;
}
