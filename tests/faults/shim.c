/*
 * Faults in system calls, for tests: loaded into a process by LD_PRELOAD.
 *
 * Of the calls that concern files below FAULT_DIR it counts those of a class, and at number
 * FAULT_AT it does what FAULT_KIND says:
 *
 *   kill_before, kill_after  ends the process before or after a call that changes something
 *   half                     does half of a write, then ends the process
 *   eio                      fails any call, those that read included, with EIO
 *   enospc                   fails one call that needs space with ENOSPC
 *   full                     fails that call and all later ones that need space with ENOSPC
 *
 * With FAULT_RECORD it does nothing of that but records every change, with the bytes, and what
 * the process prints on stderr, so that a test can rebuild the disk as it was at any moment.
 *
 * FAULT_NOTE is a file that gets a line, "call<TAB>path", for each fault that happened, and
 * "counted<TAB>number" at the end. One lock holds all other threads while a call is made, so that
 * the order of records is that of the calls.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum class { READS = 1, CHANGES = 2, GROWS = 4, WRITES = 8 };
enum kind { NONE, KILL_BEFORE, KILL_AFTER, HALF, EIO_ONCE, ENOSPC_ONCE, FULL, RECORD };
enum verdict { PASS, FAIL, HALVE };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static enum kind kind = NONE;
static int wanted;
static long at, counted;
static int dies_after;
static int note_fd = -1, record_fd = -1;
static char dir[PATH_MAX];
static size_t dir_length;

static long raw_write(int fd, const void *bytes, size_t length) {
  return syscall(SYS_write, fd, bytes, length);
}

static void write_all(int fd, const void *bytes, size_t length) {
  const char *rest = bytes;
  while (length > 0) {
    long written = raw_write(fd, rest, length);
    if (written <= 0) return;
    rest += written;
    length -= (size_t)written;
  }
}

/* High numbers, so that the program's own are as without the shim. */
static int open_log(const char *name) {
  const char *path = getenv(name);
  if (!path) return -1;
  int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND, 0644);
  int high = (int)syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 900);
  syscall(SYS_close, fd);
  return high;
}

__attribute__((constructor)) static void begin(void) {
  const char *folder = getenv("FAULT_DIR"), *number = getenv("FAULT_AT"), *what = getenv("FAULT_KIND");
  if (!folder) return;
  snprintf(dir, sizeof dir, "%s", folder);
  dir_length = strlen(dir);
  note_fd = open_log("FAULT_NOTE");
  record_fd = open_log("FAULT_RECORD");
  at = number ? atol(number) : 0;
  static const struct { const char *name; enum kind kind; int wanted; } kinds[] = {
      {"kill_before", KILL_BEFORE, CHANGES}, {"kill_after", KILL_AFTER, CHANGES},
      {"half", HALF, WRITES},                {"eio", EIO_ONCE, CHANGES | READS},
      {"enospc", ENOSPC_ONCE, GROWS},        {"full", FULL, GROWS},
  };
  for (size_t i = 0; what && i < sizeof kinds / sizeof *kinds; i++)
    if (!strcmp(kinds[i].name, what)) { kind = kinds[i].kind; wanted = kinds[i].wanted; }
  if (record_fd >= 0) kind = RECORD;
}

__attribute__((noreturn)) static void die(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

__attribute__((destructor)) static void end(void) {
  char line[64];
  if (note_fd >= 0) write_all(note_fd, line, (size_t)snprintf(line, sizeof line, "counted\t%ld\n", counted));
}

static int is_below(const char *path) {
  if (kind == NONE || strncmp(path, dir, dir_length)) return 0;
  return path[dir_length] == '/' || !path[dir_length];
}

static int of_fd(int fd, char *out) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  long length = syscall(SYS_readlinkat, AT_FDCWD, link, out, PATH_MAX - 1);
  if (length < 0) return 0;
  out[length] = 0;
  return is_below(out);
}

/* The absolute path; whether it is below the folder. */
static int of_path(int folder, const char *path, char *out) {
  if (kind == NONE || !path) return 0;
  if (path[0] == '/') {
    snprintf(out, PATH_MAX, "%s", path);
  } else {
    char base[PATH_MAX] = "";
    if (folder == AT_FDCWD) {
      if (!getcwd(base, sizeof base)) return 0;
    } else {
      of_fd(folder, base);
    }
    while (path[0] == '.' && path[1] == '/') path += 2;
    if (!strcmp(path, ".")) snprintf(out, PATH_MAX, "%.*s", PATH_MAX - 1, base);
    else if (snprintf(out, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) return 0;
  }
  size_t length = strlen(out);
  while (length > 1 && out[length - 1] == '/') out[--length] = 0;
  return is_below(out);
}

/* Decides about a call; the lock is held from here to after(). */
static enum verdict before(const char *call, const char *path, int classes) {
  pthread_mutex_lock(&lock);
  if (kind == RECORD || !(classes & wanted)) return PASS;
  counted++;
  if (counted != at && !(kind == FULL && counted > at)) return PASS;
  char line[PATH_MAX + 64];
  int length = snprintf(line, sizeof line, "%s\t%s\n", call, path);
  write_all(note_fd, line, (size_t)length);
  switch (kind) {
  case KILL_BEFORE: die();
  case KILL_AFTER: dies_after = 1; return PASS;
  case HALF: return HALVE;
  case EIO_ONCE: errno = EIO; return FAIL;
  default: errno = ENOSPC; return FAIL;
  }
}

static void after(void) {
  int kept = errno;
  if (dies_after) die();
  pthread_mutex_unlock(&lock);
  errno = kept;
}

static void record(const char *format, ...) {
  if (kind != RECORD) return;
  char line[3 * PATH_MAX];
  va_list args;
  va_start(args, format);
  int length = vsnprintf(line, sizeof line, format, args);
  va_end(args);
  write_all(record_fd, line, (size_t)length);
}

static unsigned long number_of(int fd) {
  struct stat status;
  return fstat(fd, &status) ? 0 : (unsigned long)status.st_ino;
}

#define REAL(result, name, ...)                                                                    \
  static result (*real)(__VA_ARGS__);                                                              \
  if (!real) real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

/* Opening */

static int open_below(int folder, const char *path, int flags, mode_t mode) {
  char full[PATH_MAX];
  if (!of_path(folder, path, full) || (flags & O_TMPFILE) == O_TMPFILE)
    return (int)syscall(SYS_openat, folder, path, flags, mode);
  struct stat status;
  int existed = !fstatat(AT_FDCWD, full, &status, 0);
  int creates = (flags & O_CREAT) && !existed;
  int cuts = (flags & O_TRUNC) && existed && status.st_size > 0;
  int classes = creates ? CHANGES | GROWS : cuts ? CHANGES : READS;
  int fd = -1;
  if (before("open", full, classes) == PASS) {
    fd = (int)syscall(SYS_openat, folder, path, flags, mode);
    if (fd >= 0 && creates) record("create\t%lu\t%s\n", number_of(fd), full);
    if (fd >= 0 && cuts) record("truncate\t%lu\t0\n", number_of(fd));
  }
  after();
  return fd;
}

#define MODE(flags)                                                                                \
  mode_t mode = 0;                                                                                 \
  if (((flags) & O_CREAT) || ((flags) & O_TMPFILE) == O_TMPFILE) {                                                           \
    va_list args;                                                                                  \
    va_start(args, flags);                                                                         \
    mode = va_arg(args, mode_t);                                                                   \
    va_end(args);                                                                                  \
  }

int open(const char *path, int flags, ...) {
  MODE(flags)
  return open_below(AT_FDCWD, path, flags, mode);
}
int open64(const char *path, int flags, ...) {
  MODE(flags)
  return open_below(AT_FDCWD, path, flags | O_LARGEFILE, mode);
}
int openat(int folder, const char *path, int flags, ...) {
  MODE(flags)
  return open_below(folder, path, flags, mode);
}
int openat64(int folder, const char *path, int flags, ...) {
  MODE(flags)
  return open_below(folder, path, flags | O_LARGEFILE, mode);
}
int creat(const char *path, mode_t mode) {
  return open_below(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

DIR *opendir(const char *path) {
  REAL(DIR *, opendir, const char *);
  char full[PATH_MAX];
  if (!of_path(AT_FDCWD, path, full)) return real(path);
  DIR *opened = before("opendir", full, READS) == PASS ? real(path) : NULL;
  after();
  return opened;
}

/* Reading */

#define READER(name, number, ...)                                                                  \
  char path[PATH_MAX];                                                                             \
  if (kind != EIO_ONCE || !of_fd(fd, path)) return syscall(number, fd, __VA_ARGS__);               \
  ssize_t got = before(name, path, READS) == PASS ? syscall(number, fd, __VA_ARGS__) : -1;         \
  after();                                                                                         \
  return got

ssize_t read(int fd, void *into, size_t length) { READER("read", SYS_read, into, length); }
ssize_t pread(int fd, void *into, size_t length, off_t from) {
  READER("pread", SYS_pread64, into, length, from);
}
ssize_t pread64(int fd, void *into, size_t length, off_t from) {
  READER("pread", SYS_pread64, into, length, from);
}
ssize_t readv(int fd, const struct iovec *parts, int count) {
  READER("readv", SYS_readv, parts, count);
}

/* Writing */

/* from < 0: at the file's position. */
static ssize_t write_below(int fd, const char *path, const void *bytes, size_t length, off_t from) {
  enum verdict verdict = before("write", path, CHANGES | GROWS | WRITES);
  ssize_t written = -1;
  if (verdict != FAIL) {
    size_t part = verdict == HALVE ? length / 2 : length;
    written = from < 0 ? raw_write(fd, bytes, part) : syscall(SYS_pwrite64, fd, bytes, part, from);
    if (verdict == HALVE) die();
    if (written > 0 && kind == RECORD) {
      off_t start = from;
      struct stat status;
      if (from < 0) {
        int appends = fcntl(fd, F_GETFL) & O_APPEND;
        off_t end = appends && !fstat(fd, &status) ? status.st_size : lseek(fd, 0, SEEK_CUR);
        start = end - written;
      }
      record("write\t%lu\t%ld\t%ld\n", number_of(fd), (long)start, (long)written);
      write_all(record_fd, bytes, (size_t)written);
    }
  }
  after();
  return written;
}

ssize_t write(int fd, const void *bytes, size_t length) {
  char path[PATH_MAX];
  if (kind == RECORD && fd == 2) {
    pthread_mutex_lock(&lock);
    ssize_t written = raw_write(fd, bytes, length);
    record("print\t%ld\n", (long)length);
    write_all(record_fd, bytes, length);
    after();
    return written;
  }
  if (kind == NONE || fd <= 2 || !of_fd(fd, path)) return raw_write(fd, bytes, length);
  return write_below(fd, path, bytes, length, -1);
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t from) {
  char path[PATH_MAX];
  if (kind == NONE || !of_fd(fd, path)) return syscall(SYS_pwrite64, fd, bytes, length, from);
  return write_below(fd, path, bytes, length, from);
}
ssize_t pwrite64(int fd, const void *bytes, size_t length, off_t from) {
  return pwrite(fd, bytes, length, from);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
  char path[PATH_MAX];
  if (kind == NONE || !((kind == RECORD && fd == 2) || of_fd(fd, path)))
    return syscall(SYS_writev, fd, parts, count);
  size_t length = 0;
  for (int i = 0; i < count; i++) length += parts[i].iov_len;
  char *all = malloc(length ? length : 1), *end = all;
  for (int i = 0; i < count; i++) end = mempcpy(end, parts[i].iov_base, parts[i].iov_len);
  ssize_t written = write(fd, all, length);
  free(all);
  return written;
}

/* Copies between files go through read and write. */
static int is_copy_below(int from, int to) {
  char path[PATH_MAX];
  if (kind == NONE || !(of_fd(from, path) || of_fd(to, path))) return 0;
  errno = ENOSYS;
  return 1;
}
ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t length,
                        unsigned flags) {
  if (is_copy_below(from, to)) return -1;
  return syscall(SYS_copy_file_range, from, from_at, to, to_at, length, flags);
}
ssize_t sendfile(int to, int from, off_t *from_at, size_t length) {
  if (is_copy_below(from, to)) return -1;
  return syscall(SYS_sendfile, to, from, from_at, length);
}
ssize_t sendfile64(int to, int from, off64_t *from_at, size_t length) {
  return sendfile(to, from, from_at, length);
}

int ftruncate(int fd, off_t length) {
  char path[PATH_MAX];
  if (!of_fd(fd, path)) return (int)syscall(SYS_ftruncate, fd, length);
  int failed = -1;
  if (before("ftruncate", path, CHANGES) == PASS) {
    failed = (int)syscall(SYS_ftruncate, fd, length);
    if (!failed) record("truncate\t%lu\t%ld\n", number_of(fd), (long)length);
  }
  after();
  return failed;
}
int ftruncate64(int fd, off64_t length) { return ftruncate(fd, length); }

/* Making durable */

static int sync_below(int fd, long number) {
  char path[PATH_MAX];
  if (!of_fd(fd, path)) return (int)syscall(number, fd);
  int failed = -1;
  if (before("fsync", path, CHANGES | GROWS) == PASS) {
    failed = (int)syscall(number, fd);
    if (!failed) record("sync\t%lu\n", number_of(fd));
  }
  after();
  return failed;
}
int fsync(int fd) { return sync_below(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_below(fd, SYS_fdatasync); }

/* Names */

static int rename_below(int from_folder, const char *from, int to_folder, const char *to,
                        unsigned flags) {
  char a[PATH_MAX], b[PATH_MAX];
  int below = of_path(from_folder, from, a);
  below |= of_path(to_folder, to, b);
  if (!below) return (int)syscall(SYS_renameat2, from_folder, from, to_folder, to, flags);
  int failed = -1;
  if (before("rename", b, CHANGES | GROWS) == PASS) {
    failed = (int)syscall(SYS_renameat2, from_folder, from, to_folder, to, flags);
    if (!failed) record("rename\t%s\t%s\n", a, b);
  }
  after();
  return failed;
}
int rename(const char *from, const char *to) {
  return rename_below(AT_FDCWD, from, AT_FDCWD, to, 0);
}
int renameat(int a, const char *from, int b, const char *to) {
  return rename_below(a, from, b, to, 0);
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
  return rename_below(a, from, b, to, flags);
}

static int unlink_below(int folder, const char *path, int flags) {
  char full[PATH_MAX];
  if (!of_path(folder, path, full)) return (int)syscall(SYS_unlinkat, folder, path, flags);
  int failed = -1;
  if (before(flags & AT_REMOVEDIR ? "rmdir" : "unlink", full, CHANGES) == PASS) {
    failed = (int)syscall(SYS_unlinkat, folder, path, flags);
    if (!failed) record("unlink\t%s\n", full);
  }
  after();
  return failed;
}
int unlink(const char *path) { return unlink_below(AT_FDCWD, path, 0); }
int unlinkat(int folder, const char *path, int flags) { return unlink_below(folder, path, flags); }
int rmdir(const char *path) { return unlink_below(AT_FDCWD, path, AT_REMOVEDIR); }

static int mkdir_below(int folder, const char *path, mode_t mode) {
  char full[PATH_MAX];
  struct stat status;
  /* An attempt at a folder that exists changes nothing. */
  if (!of_path(folder, path, full) || !fstatat(AT_FDCWD, full, &status, 0))
    return (int)syscall(SYS_mkdirat, folder, path, mode);
  int failed = -1;
  if (before("mkdir", full, CHANGES | GROWS) == PASS) {
    failed = (int)syscall(SYS_mkdirat, folder, path, mode);
    if (!failed && !fstatat(AT_FDCWD, full, &status, 0))
      record("mkdir\t%lu\t%s\n", (unsigned long)status.st_ino, full);
  }
  after();
  return failed;
}
int mkdir(const char *path, mode_t mode) { return mkdir_below(AT_FDCWD, path, mode); }
int mkdirat(int folder, const char *path, mode_t mode) { return mkdir_below(folder, path, mode); }

static int link_below(int from_folder, const char *from, int to_folder, const char *to, int flags) {
  char a[PATH_MAX], b[PATH_MAX];
  int below = of_path(from_folder, from, a);
  below |= of_path(to_folder, to, b);
  if (!below) return (int)syscall(SYS_linkat, from_folder, from, to_folder, to, flags);
  int failed = -1;
  if (before("link", b, CHANGES | GROWS) == PASS) {
    failed = (int)syscall(SYS_linkat, from_folder, from, to_folder, to, flags);
    if (!failed) record("link\t%s\t%s\n", a, b);
  }
  after();
  return failed;
}
int link(const char *from, const char *to) {
  return link_below(AT_FDCWD, from, AT_FDCWD, to, 0);
}
int linkat(int a, const char *from, int b, const char *to, int flags) {
  return link_below(a, from, b, to, flags);
}
