// For LD_PRELOAD: stands before the functions that give memory, and has those of one library's calls that a test chooses
// find none. So the kernels under test are the very ones that are installed.

#include <cstddef>
#include <cstdint>
#include <dlfcn.h>

#include <atomic>
#include <new>

namespace {

std::atomic<uintptr_t> begin{0}, end{0};  // where the library's code lies
std::atomic<long> calls{0}, first{0}, last{0}, failures{0};

// Whether this call, which returns to `caller`, is to find no memory.
bool fails(void* caller) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(caller);
  if (at < begin || at >= end) return false;
  const long call = ++calls;
  if (call < first || call > last) return false;
  ++failures;
  return true;
}

template <class Function>
Function* next(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

// Calls from code in [from, to) count from here on, from 1; those in [low, high] fail.
void fail_calls(uintptr_t from, uintptr_t to, long low, long high) {
  end = 0;
  calls = failures = 0;
  first = low;
  last = high;
  begin = from;
  end = to;
}
long count_calls() { return calls; }
long count_failures() { return failures; }

void* aligned_alloc(size_t alignment, size_t size) {
  static auto* const real = next<void*(size_t, size_t)>("aligned_alloc");
  return fails(__builtin_return_address(0)) ? nullptr : real(alignment, size);
}
}

void* operator new(size_t size) {
  static auto* const real = next<void*(size_t)>("_Znwm");
  if (fails(__builtin_return_address(0))) throw std::bad_alloc();
  return real(size);
}
void* operator new[](size_t size) {
  static auto* const real = next<void*(size_t)>("_Znam");
  if (fails(__builtin_return_address(0))) throw std::bad_alloc();
  return real(size);
}
void* operator new(size_t size, std::align_val_t alignment) {
  static auto* const real = next<void*(size_t, std::align_val_t)>("_ZnwmSt11align_val_t");
  if (fails(__builtin_return_address(0))) throw std::bad_alloc();
  return real(size, alignment);
}
