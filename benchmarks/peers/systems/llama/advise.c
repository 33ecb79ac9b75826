/* Preloaded into llama.cpp: advises the kernel about every large file that is mapped.
 *
 * MADV_RANDOM ends read-ahead around a fault; MADV_HUGEPAGE makes a fault fetch 2 MiB, where the kernel and the file
 * system have it. What the kernel says to each is printed, because a refusal changes what is measured.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>

#define LARGE_BYTES ((size_t)64 << 20)

typedef void *(*mmap_function)(void *, size_t, int, int, int, off_t);

static void advise(void *address, size_t length, int advice, const char *name) {
    int refused = madvise(address, length, advice);
    fprintf(stderr, "advise: %s on %zu bytes: %s\n", name, length, refused ? strerror(errno) : "taken");
}

static void *map(const char *symbol, void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    mmap_function next = (mmap_function)dlsym(RTLD_NEXT, symbol);
    void *mapped = next(address, length, protection, flags, fd, offset);
    if (mapped != MAP_FAILED && fd >= 0 && length >= LARGE_BYTES) {
        int before = errno;
        advise(mapped, length, MADV_RANDOM, "MADV_RANDOM");
        advise(mapped, length, MADV_HUGEPAGE, "MADV_HUGEPAGE");
        errno = before;
    }
    return mapped;
}

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    return map("mmap", address, length, protection, flags, fd, offset);
}

void *mmap64(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    return map("mmap64", address, length, protection, flags, fd, offset);
}
