// total[i] = the sum of terms[k, i] over k, in halves: k to k + count/2, and so on. terms (count, size) is written over.
extern "C" __global__ void halved(real* terms, real* total, int count, int size) {
  for (int i = THREAD; i < size; i += STRIDE) {
    real* term = terms + i;
    for (int half = count / 2; half; half /= 2)
      for (int k = 0; k < half; k++) term[size_t(k) * size] += term[size_t(k + half) * size];
    total[i] = term[0];
  }
}
