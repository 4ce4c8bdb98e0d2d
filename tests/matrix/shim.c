/* Faults of the environment for one process and its children, through LD_PRELOAD (ld.so(8)).

   cc -shared -fPIC -O1 -o shim.so shim.c -ldl

   SHIM_PATH    calls on files below this directory count, all others pass
   SHIM_OPS     which: letters of r(ead) w(rite) s(ync) o(pen) n(ame: rename, link, mkdir, unlink)
   SHIM_NTH     the call of a process that is hit, the first is 1; in the first process that makes it
   SHIM_STICKY  1: in every process, and every call after it too
   SHIM_ERRNO   it fails with this number
   SHIM_SIGNAL  or: the process gets this signal before it
   SHIM_USLEEP  or: it takes this many microseconds longer
   SHIM_LOG     what was hit is written here, and with SHIM_COUNT=1 how many calls there were
   SHIM_CLOCK   seconds that the clock jumps by, to and fro every SHIM_NTH readings of it
   SHIM_MAIN    1: children are spared */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static const char *path, *ops, *note;
static long nth, sticky, number, sig, pause_us, jump, counting, calls, readings, each[256];

static long integer(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

static void say(const char *what, const char *where) {
    char line[PATH_MAX + 64];
    if (!note) return;
    int fd = syscall(SYS_openat, AT_FDCWD, note, O_WRONLY | O_CREAT | O_APPEND, 0600);
    int length = snprintf(line, sizeof line, "%d %ld %s %s\n", getpid(), calls, what, where);
    if (fd >= 0) syscall(SYS_write, fd, line, length), syscall(SYS_close, fd);
}

__attribute__((constructor)) static void begin(void) {
    path = getenv("SHIM_PATH"), ops = getenv("SHIM_OPS"), note = getenv("SHIM_LOG");
    nth = integer("SHIM_NTH"), sticky = integer("SHIM_STICKY"), number = integer("SHIM_ERRNO");
    sig = integer("SHIM_SIGNAL"), pause_us = integer("SHIM_USLEEP"), jump = integer("SHIM_CLOCK");
    counting = integer("SHIM_COUNT");
    if (integer("SHIM_MAIN")) unsetenv("LD_PRELOAD");
}

__attribute__((destructor)) static void end(void) {
    char line[128];
    snprintf(line, sizeof line, "r%ld w%ld s%ld o%ld n%ld", each['r'], each['w'], each['s'],
             each['o'], each['n']);
    if (counting) say("calls", line);
}

/* Whether no other process was hit: a disk that fails once does not fail each of them once. */
static int first(void) {
    char once[PATH_MAX];
    int kept = errno;
    if (!note) return 1;
    snprintf(once, sizeof once, "%s.once", note);
    int fd = syscall(SYS_openat, AT_FDCWD, once, O_WRONLY | O_CREAT | O_EXCL, 0600);
    if (fd >= 0) syscall(SYS_close, fd);
    errno = kept;
    return fd >= 0;
}

/* Whether this call fails; errno is set then. */
static int hit(char op, const char *what, const char *where) {
    if (!path || !ops || !where || !strchr(ops, op)) return 0;
    if (where[0] == '/' && strncmp(where, path, strlen(path))) return 0;
    if (where[0] != '/') return 0;
    __atomic_add_fetch(&each[(unsigned char)op], 1, __ATOMIC_SEQ_CST);
    long call = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
    if (!nth || call < nth || (!sticky && (call > nth || !first()))) return 0;
    if (call == nth) say(what, where);
    if (pause_us) usleep(pause_us);
    if (sig) kill(getpid(), sig);
    if (!number) return 0;
    errno = number;
    return 1;
}

static int hit_fd(char op, const char *what, int fd) {
    char link[64], where[PATH_MAX];
    if (!path || !ops || !strchr(ops, op)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int kept = errno;
    long length = syscall(SYS_readlink, link, where, sizeof where - 1);
    errno = kept;
    if (length <= 0) return 0;
    where[length] = 0;
    return hit(op, what, where);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define ON_FD(type, op, name, parameters, ...)                                                   \
    type name parameters {                                                                       \
        static __typeof__(&name) real;                                                           \
        if (!real) real = REAL(name);                                                            \
        return hit_fd(op, #name, fd) ? (type)-1 : real(__VA_ARGS__);                             \
    }
#define ON_PATH(op, name, parameters, ...)                                                       \
    int name parameters {                                                                        \
        static __typeof__(&name) real;                                                           \
        if (!real) real = REAL(name);                                                            \
        return hit(op, #name, to) ? -1 : real(__VA_ARGS__);                                      \
    }
#define OPENING(name)                                                                            \
    int name(const char *to, int flags, ...) {                                                   \
        static int (*real)(const char *, int, ...);                                              \
        va_list more;                                                                            \
        va_start(more, flags);                                                                   \
        mode_t mode = va_arg(more, int);                                                         \
        va_end(more);                                                                            \
        if (!real) real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name);              \
        return hit('o', #name, to) ? -1 : real(to, flags, mode);                                 \
    }
#define OPENING_AT(name)                                                                         \
    int name(int at, const char *to, int flags, ...) {                                           \
        static int (*real)(int, const char *, int, ...);                                         \
        va_list more;                                                                            \
        va_start(more, flags);                                                                   \
        mode_t mode = va_arg(more, int);                                                         \
        va_end(more);                                                                            \
        if (!real) real = (int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, #name);         \
        return hit('o', #name, to) ? -1 : real(at, to, flags, mode);                             \
    }

OPENING(open)
OPENING(open64)
OPENING_AT(openat)
OPENING_AT(openat64)
ON_FD(ssize_t, 'w', write, (int fd, const void *data, size_t size), fd, data, size)
ON_FD(ssize_t, 'w', pwrite, (int fd, const void *data, size_t size, off_t at), fd, data, size, at)
ON_FD(ssize_t, 'w', pwrite64, (int fd, const void *data, size_t size, off64_t at), fd, data, size, at)
ON_FD(ssize_t, 'w', writev, (int fd, const struct iovec *parts, int count), fd, parts, count)
ON_FD(int, 'w', ftruncate, (int fd, off_t size), fd, size)
ON_FD(int, 'w', ftruncate64, (int fd, off64_t size), fd, size)
ON_FD(ssize_t, 'r', read, (int fd, void *data, size_t size), fd, data, size)
ON_FD(ssize_t, 'r', pread, (int fd, void *data, size_t size, off_t at), fd, data, size, at)
ON_FD(ssize_t, 'r', pread64, (int fd, void *data, size_t size, off64_t at), fd, data, size, at)
ON_FD(int, 's', fsync, (int fd), fd)
ON_FD(int, 's', fdatasync, (int fd), fd)
ON_PATH('n', rename, (const char *from, const char *to), from, to)
ON_PATH('n', renameat, (int a, const char *from, int b, const char *to), a, from, b, to)
ON_PATH('n', link, (const char *from, const char *to), from, to)
ON_PATH('n', mkdir, (const char *to, mode_t mode), to, mode)
ON_PATH('n', unlink, (const char *to), to)
ON_PATH('n', rmdir, (const char *to), to)

static long shift(void) {
    if (!jump || !nth) return 0;
    return (__atomic_add_fetch(&readings, 1, __ATOMIC_SEQ_CST) / nth) % 2 ? jump : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int code = syscall(SYS_clock_gettime, clock, now);
    if (clock == CLOCK_REALTIME && !code) now->tv_sec += shift();
    return code;
}

time_t time(time_t *now) {
    struct timespec seen;
    clock_gettime(CLOCK_REALTIME, &seen);
    if (now) *now = seen.tv_sec;
    return seen.tv_sec;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec seen;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &seen);
    now->tv_sec = seen.tv_sec, now->tv_usec = seen.tv_nsec / 1000;
    return 0;
}
