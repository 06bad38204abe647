/* Preloaded into imgfs by tests/torture/replay.rs: writes down every system call that changes a file or a directory.
 *
 * A filter in the kernel traps these calls, whoever makes them, by libc or not. The handler makes the call, with MARK
 * in its sixth argument, which lets it pass, and writes to the file that RECORD names what it did. Files are named by
 * inode, so that a rename does not matter to them. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#define ARGUMENT(u, n) ((u)->uc_mcontext.gregs[(int[]){REG_RDI, REG_RSI, REG_RDX, REG_R10, REG_R8}[n]])
#define RESULT(u) ((u)->uc_mcontext.gregs[REG_RAX])
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#define ARGUMENT(u, n) ((long)(u)->uc_mcontext.regs[n])
#define RESULT(u) ((u)->uc_mcontext.regs[0])
#endif
#define MARK 0x696d6766

/* Calls that change files, in today's form and in that of old machines. */
static const int trapped[] = {
    SYS_openat, SYS_write, SYS_writev, SYS_pwrite64, SYS_pwritev, SYS_ftruncate, SYS_truncate, SYS_fallocate, SYS_fsync,
    SYS_fdatasync, SYS_renameat, SYS_renameat2, SYS_unlinkat, SYS_mkdirat, SYS_linkat, SYS_symlinkat, SYS_copy_file_range,
    SYS_sendfile,
#ifdef SYS_open
    SYS_open, SYS_creat, SYS_rename, SYS_unlink, SYS_rmdir, SYS_mkdir, SYS_link, SYS_symlink,
#endif
};

enum { CREATE = 1, MKDIR, RENAME, REMOVE, WRITE, SIZE, ZERO, SYNC };

/* Held across a call on a file of the store and its note: they are noted in the order in which they are done. Not across
 * others: one that wakes the kernel's end of the mount may wait for another thread's. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int out = -1;
static dev_t device;
static char below[4096];

static long call(long number, const long *a) {
    long done = syscall(number, a[0], a[1], a[2], a[3], a[4], MARK);
    return done < 0 ? -errno : done;
}

static void note(uint32_t what, uint64_t ino, uint64_t at, const struct iovec *v, size_t count, size_t size) {
    uint64_t head[4] = {what, ino, at, size};
    call(SYS_write, (long[]){out, (long)head, sizeof head, 0, 0});
    for (size_t n = 0; n < count && size; n++) {
        size_t some = v[n].iov_len < size ? v[n].iov_len : size;
        call(SYS_write, (long[]){out, (long)v[n].iov_base, some, 0, 0});
        size -= some;
    }
}

/* A path below the store, without the store's own; two of them with a zero byte between. */
static void note_path(uint32_t what, uint64_t ino, const char *a, const char *b) {
    struct iovec v[] = {{(void *)a, strlen(a)}, {"", 1}, {(void *)b, strlen(b)}};
    note(what, ino, 0, v, 3, v[0].iov_len + 1 + v[2].iov_len);
}

/* A call this does not know how to note, on a file of the store: the test must not go on without it. */
static void give_up(const char *what) {
    call(SYS_write, (long[]){2, (long)what, (long)strlen(what), 0, 0});
    abort();
}

/* The path below the store; NULL if it is elsewhere. */
static const char *inside(int directory, const char *path, char *to) {
    size_t n = 0;
    if (path[0] != '/') {
        char link[64];
        snprintf(link, sizeof link, directory == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", directory);
        ssize_t got = readlink(link, to, 4000);
        n = got < 0 ? 0 : (size_t)got;
        to[n++] = '/';
    }
    snprintf(to + n, 8192 - n, "%s", path);
    size_t prefix = strlen(below);
    return strncmp(to, below, prefix) == 0 && to[prefix] == '/' ? to + prefix + 1 : NULL;
}

static int is_ours(int fd, struct stat *st) {
    return fstat(fd, st) == 0 && st->st_dev == device && (S_ISREG(st->st_mode) || S_ISDIR(st->st_mode));
}

static long opened(long number, const long *a, int directory, const char *path, int flags) {
    char buffer[8192];
    const char *name = inside(directory, path, buffer);
    struct stat before, st;
    if (!name || !(flags & (O_CREAT | O_TRUNC)) || (flags & O_TMPFILE) == O_TMPFILE) return call(number, a);
    pthread_mutex_lock(&lock);
    int there = stat(buffer, &before) == 0;
    long fd = call(number, a);
    if (fd >= 0 && is_ours((int)fd, &st)) {
        if (!there) note_path(CREATE, st.st_ino, name, "");
        else if (flags & O_TRUNC) note(SIZE, st.st_ino, 0, NULL, 0, 0);
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

static long wrote(long number, const long *a, const struct iovec *v, int count, off_t at) {
    struct stat st;
    int fd = (int)a[0];
    if (!is_ours(fd, &st)) return call(number, a);
    pthread_mutex_lock(&lock);
    fstat(fd, &st);
    if (at < 0) at = fcntl(fd, F_GETFL) & O_APPEND ? st.st_size : lseek(fd, 0, SEEK_CUR);
    long done = call(number, a);
    if (done > 0) note(WRITE, st.st_ino, (uint64_t)at, v, (size_t)count, (size_t)done);
    pthread_mutex_unlock(&lock);
    return done;
}

static long named(long number, const long *a, uint32_t what, int d1, const char *p1, int d2, const char *p2) {
    char b1[8192], b2[8192];
    const char *from = inside(d1, p1, b1), *to = p2 ? inside(d2, p2, b2) : "";
    struct stat st = {0};
    if (p2 && !from != !to) give_up("record.c cannot note a move into the store or out of it\n");
    if (!from) return call(number, a);
    pthread_mutex_lock(&lock);
    long done = call(number, a);
    if (done == 0 && what == MKDIR) stat(b1, &st);
    if (done == 0) note_path(what, st.st_ino, from, to);
    pthread_mutex_unlock(&lock);
    return done;
}

static long on_fd(long number, const long *a, uint32_t what, uint64_t at, uint64_t size) {
    struct stat st;
    if (!is_ours((int)a[0], &st)) return call(number, a);
    pthread_mutex_lock(&lock);
    long done = call(number, a);
    uint64_t head[4] = {what, st.st_ino, at, size};
    if (done == 0) call(SYS_write, (long[]){out, (long)head, sizeof head, 0, 0});
    pthread_mutex_unlock(&lock);
    return done;
}

static long trap(long number, const long *a) {
    struct iovec one = {(void *)a[1], (size_t)a[2]};
    struct stat st;
    switch (number) {
    case SYS_openat: return opened(number, a, (int)a[0], (char *)a[1], (int)a[2]);
    case SYS_write: return wrote(number, a, &one, 1, -1);
    case SYS_writev: return wrote(number, a, (struct iovec *)a[1], (int)a[2], -1);
    case SYS_pwrite64: return wrote(number, a, &one, 1, a[3]);
    case SYS_pwritev: return wrote(number, a, (struct iovec *)a[1], (int)a[2], a[3]);
    case SYS_ftruncate: return on_fd(number, a, SIZE, 0, (uint64_t)a[1]);
    case SYS_fsync:
    case SYS_fdatasync: return on_fd(number, a, SYNC, 0, 0);
    case SYS_fallocate:
        if (a[1] & FALLOC_FL_PUNCH_HOLE) return on_fd(number, a, ZERO, (uint64_t)a[2], (uint64_t)a[3]);
        if (a[1] || !is_ours((int)a[0], &st)) give_up("record.c cannot note a fallocate\n");
        return on_fd(number, a, SIZE, 0, (uint64_t)(a[2] + a[3] > st.st_size ? a[2] + a[3] : st.st_size));
    case SYS_renameat:
    case SYS_renameat2: return named(number, a, RENAME, (int)a[0], (char *)a[1], (int)a[2], (char *)a[3]);
    case SYS_unlinkat: return named(number, a, REMOVE, (int)a[0], (char *)a[1], 0, NULL);
    case SYS_mkdirat: return named(number, a, MKDIR, (int)a[0], (char *)a[1], 0, NULL);
    case SYS_copy_file_range:
    case SYS_sendfile: return -ENOSYS; /* Whoever asks for it can do without. */
#ifdef SYS_open
    case SYS_open: return opened(number, a, AT_FDCWD, (char *)a[0], (int)a[1]);
    case SYS_creat: return opened(number, a, AT_FDCWD, (char *)a[0], O_CREAT | O_TRUNC);
    case SYS_rename: return named(number, a, RENAME, AT_FDCWD, (char *)a[0], AT_FDCWD, (char *)a[1]);
    case SYS_unlink:
    case SYS_rmdir: return named(number, a, REMOVE, AT_FDCWD, (char *)a[0], 0, NULL);
    case SYS_mkdir: return named(number, a, MKDIR, AT_FDCWD, (char *)a[0], 0, NULL);
#endif
    default: give_up("record.c cannot note a link or a truncate\n"); return -ENOSYS;
    }
}

static void handle(int signal, siginfo_t *info, void *context) {
    ucontext_t *u = context;
    int saved = errno;
    long a[5];
    for (int n = 0; n < 5; n++) a[n] = (long)ARGUMENT(u, n);
    (void)signal;
    RESULT(u) = trap(info->si_syscall, a);
    errno = saved;
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("RECORD"), *store = getenv("RECORD_BELOW");
    struct stat st;
    if (!path || !store || stat(store, &st) || !realpath(store, below)) return;
    device = st.st_dev;
    out = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO};
    sigaction(SIGSYS, &action, NULL);
    enum { COUNT = sizeof trapped / sizeof *trapped };
    struct sock_filter filter[COUNT + 8] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCH, 0, COUNT + 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[5])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, MARK, COUNT + 1, 0),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    };
    for (int n = 0; n < COUNT; n++)
        filter[5 + n] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)trapped[n], COUNT - n, 0);
    filter[5 + COUNT] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    filter[6 + COUNT] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP);
    struct sock_fprog program = {COUNT + 7, filter};
    if (out < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) abort();
}
