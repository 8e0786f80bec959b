// A library to be preloaded that makes one call of the C library fail, or kills the process there.
//
//   LLMCTL_FAULT=CALL:N:ACTION    the N-th CALL (from 1) after main began
//   LLMCTL_FAULT_COUNT=FILE       write "CALL COUNT" lines there when the process ends
//
// ACTION is EIO, ENOSPC, ENOMEM, EACCES (the call fails so), SHORT (a read or write of half the
// bytes) or KILL (SIGKILL in front of the call). CALL is one of kNames below; the variants of a
// call (pread64, open64, openat) count as one. Reading and writing of descriptors 0 to 2 and of
// /proc and /sys does not count.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

enum Call {
  kRead,
  kWrite,
  kSync,
  kRename,
  kOpen,
  kAllocate,
  kMap,
  kMalloc,
  kMakeDirectory,
  kNumCalls
};
static const char *const kNames[kNumCalls] = {"read", "write",  "sync",  "rename", "open",
                                              "allocate", "map", "malloc", "mkdir"};

static atomic_long counts[kNumCalls];
static atomic_int armed;
static int fault_call = -1;
static long fault_number;
static int fault_errno;  // 0: SHORT, -1: KILL

/// Whether this call is the one. Kills when that is the action.
static int strikes(enum Call call) {
  if (!atomic_load(&armed)) return 0;
  const long number = atomic_fetch_add(&counts[call], 1) + 1;
  if ((int)call != fault_call || number != fault_number) return 0;
  if (fault_errno == -1) kill(getpid(), SIGKILL);
  if (fault_errno > 0) errno = fault_errno;
  return 1;
}

static void parse_fault(void) {
  const char *text = getenv("LLMCTL_FAULT");
  char call[32], action[32];
  if (text == NULL || sscanf(text, "%31[a-z]:%ld:%31s", call, &fault_number, action) != 3) return;
  for (int i = 0; i < kNumCalls; ++i) {
    if (strcmp(call, kNames[i]) == 0) fault_call = i;
  }
  fault_errno = strcmp(action, "EIO") == 0      ? EIO
                : strcmp(action, "ENOSPC") == 0 ? ENOSPC
                : strcmp(action, "ENOMEM") == 0 ? ENOMEM
                : strcmp(action, "EACCES") == 0 ? EACCES
                : strcmp(action, "KILL") == 0   ? -1
                                                : 0;
}

#define REAL(type, name, ...)                             \
  static type (*real)(__VA_ARGS__);                       \
  if (real == NULL) *(void **)&real = dlsym(RTLD_NEXT, name)

static void write_counts(void) {
  const char *path = getenv("LLMCTL_FAULT_COUNT");
  atomic_store(&armed, 0);
  if (path == NULL) return;
  FILE *file = fopen(path, "w");
  if (file == NULL) return;
  for (int i = 0; i < kNumCalls; ++i) fprintf(file, "%s %ld\n", kNames[i], counts[i]);
  fclose(file);
}

static int (*program_main)(int, char **, char **);

static int counted_main(int argc, char **argv, char **environment) {
  atomic_store(&armed, 1);
  const int status = program_main(argc, argv, environment);
  write_counts();
  return status;
}

int __libc_start_main(int (*main)(int, char **, char **), int argc, char **argv, void (*init)(void),
                      void (*fini)(void), void (*rtld_fini)(void), void *stack_end) {
  REAL(int, "__libc_start_main", int (*)(int, char **, char **), int, char **, void (*)(void),
       void (*)(void), void (*)(void), void *);
  parse_fault();
  program_main = main;
  return real(counted_main, argc, argv, init, fini, rtld_fini, stack_end);
}

/// Whether the descriptor is a file or directory that the program works on.
static int is_work(int descriptor) {
  if (descriptor <= 2) return 0;
  struct stat status;
  // Files of /proc and /sys have no blocks and claim to be empty or a page long.
  return fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode) &&
         (status.st_blocks > 0 || status.st_size > 4096);
}

static int is_work_path(const char *path) {
  return strncmp(path, "/proc/", 6) != 0 && strncmp(path, "/sys/", 5) != 0 &&
         strncmp(path, "/dev/", 5) != 0;
}

ssize_t read(int descriptor, void *data, size_t size) {
  REAL(ssize_t, "read", int, void *, size_t);
  if (is_work(descriptor) && strikes(kRead)) {
    if (fault_errno > 0) return -1;
    size = (size + 1) / 2;
  }
  return real(descriptor, data, size);
}

ssize_t pread(int descriptor, void *data, size_t size, off_t offset) {
  REAL(ssize_t, "pread", int, void *, size_t, off_t);
  if (!strikes(kRead)) return real(descriptor, data, size, offset);
  if (fault_errno > 0) return -1;
  // O_DIRECT takes whole blocks only, so all is done and half of it told.
  const ssize_t done = real(descriptor, data, size, offset);
  return done > 0 ? (done + 1) / 2 : done;
}
ssize_t pread64(int descriptor, void *data, size_t size, off64_t offset) {
  return pread(descriptor, data, size, offset);
}

ssize_t write(int descriptor, const void *data, size_t size) {
  REAL(ssize_t, "write", int, const void *, size_t);
  if (descriptor > 2 && strikes(kWrite)) {
    if (fault_errno > 0) return -1;
    size = (size + 1) / 2;
  }
  return real(descriptor, data, size);
}

ssize_t pwrite(int descriptor, const void *data, size_t size, off_t offset) {
  REAL(ssize_t, "pwrite", int, const void *, size_t, off_t);
  if (!strikes(kWrite)) return real(descriptor, data, size, offset);
  if (fault_errno > 0) return -1;
  const ssize_t done = real(descriptor, data, size, offset);
  return done > 0 ? (done + 1) / 2 : done;
}
ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t offset) {
  return pwrite(descriptor, data, size, offset);
}

ssize_t sendfile(int out, int in, off_t *offset, size_t size) {
  REAL(ssize_t, "sendfile", int, int, off_t *, size_t);
  if (strikes(kWrite)) {
    if (fault_errno > 0) return -1;
    size = (size + 1) / 2;
  }
  return real(out, in, offset, size);
}
ssize_t sendfile64(int out, int in, off64_t *offset, size_t size) {
  return sendfile(out, in, offset, size);
}

ssize_t copy_file_range(int in, off64_t *in_offset, int out, off64_t *out_offset, size_t size,
                        unsigned flags) {
  REAL(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned);
  if (strikes(kWrite)) {
    if (fault_errno > 0) return -1;
    size = (size + 1) / 2;
  }
  return real(in, in_offset, out, out_offset, size, flags);
}

int fsync(int descriptor) {
  REAL(int, "fsync", int);
  return strikes(kSync) && fault_errno > 0 ? -1 : real(descriptor);
}
int fdatasync(int descriptor) {
  REAL(int, "fdatasync", int);
  return strikes(kSync) && fault_errno > 0 ? -1 : real(descriptor);
}
int syncfs(int descriptor) {
  REAL(int, "syncfs", int);
  return strikes(kSync) && fault_errno > 0 ? -1 : real(descriptor);
}

int rename(const char *from, const char *to) {
  REAL(int, "rename", const char *, const char *);
  return strikes(kRename) && fault_errno > 0 ? -1 : real(from, to);
}
int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
  REAL(int, "renameat2", int, const char *, int, const char *, unsigned);
  return strikes(kRename) && fault_errno > 0 ? -1 : real(from_folder, from, to_folder, to, flags);
}

int mkdir(const char *path, mode_t mode) {
  REAL(int, "mkdir", const char *, mode_t);
  return strikes(kMakeDirectory) && fault_errno > 0 ? -1 : real(path, mode);
}

int open(const char *path, int flags, ...) {
  REAL(int, "open", const char *, int, ...);
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
  va_end(arguments);
  if (is_work_path(path) && strikes(kOpen) && fault_errno > 0) return -1;
  return real(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
  va_end(arguments);
  return open(path, flags, mode);
}

int posix_fallocate(int descriptor, off_t offset, off_t size) {
  REAL(int, "posix_fallocate", int, off_t, off_t);
  return strikes(kAllocate) && fault_errno > 0 ? fault_errno : real(descriptor, offset, size);
}
int posix_fallocate64(int descriptor, off64_t offset, off64_t size) {
  return posix_fallocate(descriptor, offset, size);
}
int fallocate(int descriptor, int mode, off_t offset, off_t size) {
  REAL(int, "fallocate", int, int, off_t, off_t);
  return strikes(kAllocate) && fault_errno > 0 ? -1 : real(descriptor, mode, offset, size);
}
int fallocate64(int descriptor, int mode, off64_t offset, off64_t size) {
  return fallocate(descriptor, mode, offset, size);
}
int ftruncate(int descriptor, off_t size) {
  REAL(int, "ftruncate", int, off_t);
  return strikes(kAllocate) && fault_errno > 0 ? -1 : real(descriptor, size);
}
int ftruncate64(int descriptor, off64_t size) { return ftruncate(descriptor, size); }

void *mmap(void *address, size_t size, int protection, int flags, int descriptor, off_t offset) {
  REAL(void *, "mmap", void *, size_t, int, int, int, off_t);
  if (strikes(kMap) && fault_errno > 0) return MAP_FAILED;
  return real(address, size, protection, flags, descriptor, offset);
}
void *mmap64(void *address, size_t size, int protection, int flags, int descriptor,
             off64_t offset) {
  return mmap(address, size, protection, flags, descriptor, offset);
}

extern void *__libc_malloc(size_t);
void *malloc(size_t size) {
  if (strikes(kMalloc) && fault_errno > 0) return NULL;
  return __libc_malloc(size);
}
