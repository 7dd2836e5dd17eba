// Memory that a call needs beside its tensors, most of which a thread keeps for its next call.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>

namespace torchdcn {

// No memory: in Python a MemoryError with this text.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(size_t bytes) noexcept {
    std::snprintf(text_, sizeof text_, "torchdcn: out of memory: the CPU kernels found no room for %zu bytes", bytes);
  }
  OutOfMemory() noexcept {
    std::snprintf(text_, sizeof text_, "torchdcn: out of memory: the CPU kernels found no room");
  }
  const char* what() const noexcept override { return text_; }

 private:
  char text_[96];
};

void* aligned_memory(size_t bytes);  // throws OutOfMemory

// Uninitialised, aligned to a cache line; asks for huge pages where it is large, which spares page faults.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count = 0) { resize(count); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  void resize(int64_t count);  // contents are lost
  void trim(int64_t bytes);    // frees what takes more
  T* data() const { return data_; }

 private:
  void release();

  T* data_ = nullptr;
  int64_t capacity_ = 0;
};

template <class T>
void Buffer<T>::resize(int64_t count) {
  if (count <= capacity_) return;
  release();  // first, so that both are never held; and where there is no more memory the buffer is empty, and knows it
  data_ = static_cast<T*>(aligned_memory(size_t(count) * sizeof(T)));
  capacity_ = count;
}

template <class T>
void Buffer<T>::trim(int64_t bytes) {
  if (capacity_ * int64_t(sizeof(T)) > bytes) release();
}

template <class T>
void Buffer<T>::release() {
  std::free(data_);
  data_ = nullptr;
  capacity_ = 0;
}

// A call's use of a buffer that outlives it. Fresh pages cost more than packing a weight into them, so up to 16 MB stay
// with the calling thread for its next call.
template <class T>
class Kept {
 public:
  Kept(Buffer<T>& buffer, int64_t count) : buffer_(buffer) { buffer_.resize(count); }
  Kept(const Kept&) = delete;
  Kept& operator=(const Kept&) = delete;
  ~Kept() { buffer_.trim(int64_t(16) << 20); }
  T* data() const { return buffer_.data(); }

 private:
  Buffer<T>& buffer_;
};

// Holds a call's packed weight: forward's, or backward's transposed one.
template <class T>
Buffer<T>& packed_memory() {
  thread_local Buffer<T> memory;
  return memory;
}

// What a thread works on, kept for its next task. It may hold what a task that failed has left there. Only a pointer is
// the thread's own variable: glibc ends the process where it finds no room for those, but `new` throws.
template <class Scratch>
Scratch& thread_scratch() {
  thread_local std::unique_ptr<Scratch> scratch;
  if (!scratch) scratch.reset(new Scratch);
  return *scratch;
}

}  // namespace torchdcn
