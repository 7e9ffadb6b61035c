#include "shared_memory.h"

#include <cstdlib>
#include <cstring>

#include "scheduler.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#include <link.h>
#endif

namespace cuda_emulator {
namespace {

char *static_memory, *dynamic_memory;
size_t static_bytes, dynamic_bytes;

// Finds the thread-local variables of this library: all static shared memory.
void find_static_memory() {
#if !defined(__SANITIZE_ADDRESS__)
  static thread_local volatile char one_of_them;
  one_of_them = 0;  // what is not used has no memory yet
  const auto look = [](dl_phdr_info* library, size_t, void*) {
    for (int i = 0; i < library->dlpi_phnum; ++i) {
      const auto& segment = library->dlpi_phdr[i];
      const auto* begin = static_cast<char*>(library->dlpi_tls_data);
      if (segment.p_type != PT_TLS || begin == nullptr) continue;
      if (&one_of_them < begin || &one_of_them >= begin + segment.p_memsz) continue;
      static_memory = static_cast<char*>(library->dlpi_tls_data);
      static_bytes = segment.p_memsz;
      return 1;
    }
    return 0;
  };
  dl_iterate_phdr(look, nullptr);
#endif
}

// Dynamic shared memory ends exactly where the launch says: AddressSanitizer guards what is behind.
size_t room() { return (dynamic_bytes + 127) / 128 * 128; }

void guard_the_rest([[maybe_unused]] bool on) {
#if defined(__SANITIZE_ADDRESS__)
  if (on) ASAN_POISON_MEMORY_REGION(dynamic_memory + dynamic_bytes, room() - dynamic_bytes);
  if (!on) ASAN_UNPOISON_MEMORY_REGION(dynamic_memory + dynamic_bytes, room() - dynamic_bytes);
#endif
}

}  // namespace

SharedMemory::SharedMemory(size_t bytes) {
  find_static_memory();
  dynamic_bytes = bytes;
  if (bytes == 0) return;
  dynamic_memory = static_cast<char*>(std::aligned_alloc(128, room()));
  guard_the_rest(true);
}

SharedMemory::~SharedMemory() {
  if (dynamic_memory == nullptr) return;
  guard_the_rest(false);
  std::free(dynamic_memory);
  dynamic_memory = nullptr;
}

void fill_shared_memory() {
  if (static_memory != nullptr) std::memset(static_memory, 0xFF, static_bytes);
  if (dynamic_memory != nullptr) std::memset(dynamic_memory, 0xFF, dynamic_bytes);
}

void* dynamic_shared() { return dynamic_memory; }

bool is_shared_memory(const void* address) {
  const auto* byte = static_cast<const char*>(address);
  return (byte >= static_memory && byte < static_memory + static_bytes) ||
         (byte >= dynamic_memory && byte < dynamic_memory + dynamic_bytes);
}

}  // namespace cuda_emulator
