/* Preloaded into imgfs by tests/torture.rs: the Nth call that changes a file kills the process, or fails.
 *
 * The file that TORTURE names is shared with the test: what to do, at which call, and how many there were. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, KILL, ONCE, FROM_THEN_ON };

struct control {
    _Atomic uint32_t mode, at, errno_, count;
};

static struct control nothing, *control = &nothing;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("TORTURE");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *map = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map != MAP_FAILED) control = map;
    close(fd);
}

/* Whether this call fails, with errno set. */
static int strikes(void) {
    uint32_t mode = control->mode;
    if (mode == OFF) return 0;
    uint32_t n = atomic_fetch_add(&control->count, 1) + 1;
    if (n != control->at && !(mode == FROM_THEN_ON && n > control->at)) return 0;
    if (mode == KILL) kill(getpid(), SIGKILL), pause();
    errno = (int)control->errno_;
    return 1;
}

/* Only what goes to a file or a directory: not pipes, terminals, the kernel's end of a mount. */
static int is_file(int fd) {
    struct stat st;
    int saved = errno, yes = fstat(fd, &st) == 0 && (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode));
    errno = saved;
    return yes;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define ON_FD(type, name, parameters, arguments) \
    type name parameters { REAL(name); return is_file(fd) && strikes() ? (type)-1 : real arguments; }
#define ON_PATH(name, parameters, arguments) int name parameters { REAL(name); return strikes() ? -1 : real arguments; }

ON_FD(ssize_t, write, (int fd, const void *b, size_t n), (fd, b, n))
ON_FD(ssize_t, writev, (int fd, const struct iovec *v, int n), (fd, v, n))
ON_FD(ssize_t, pwrite, (int fd, const void *b, size_t n, off_t o), (fd, b, n, o))
ON_FD(ssize_t, pwrite64, (int fd, const void *b, size_t n, off64_t o), (fd, b, n, o))
ON_FD(int, fsync, (int fd), (fd))
ON_FD(int, fdatasync, (int fd), (fd))
ON_FD(int, ftruncate, (int fd, off_t n), (fd, n))
ON_FD(int, ftruncate64, (int fd, off64_t n), (fd, n))
ON_PATH(rename, (const char *a, const char *b), (a, b))
ON_PATH(renameat2, (int d, const char *a, int e, const char *b, unsigned f), (d, a, e, b, f))
ON_PATH(unlink, (const char *a), (a))
ON_PATH(rmdir, (const char *a), (a))
ON_PATH(mkdir, (const char *a, mode_t m), (a, m))
ON_PATH(unlinkat, (int d, const char *a, int f), (d, a, f))

/* An open that makes a file changes its directory. */
#define ON_OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        return flags & O_CREAT && strikes() ? -1 : real(path, flags, mode); \
    }
ON_OPEN(open)
ON_OPEN(open64)
