/* Preloaded into imgfs by tests/torture/power.rs: a daemon whose syncs are lies.
 *
 * fsync and fdatasync of files whose path has one of the words in LIES in it, between colons, say that all is well and
 * do nothing. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int lies(int fd) {
    const char *words = getenv("LIES");
    char link[64], path[4096], word[256];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 2);
    if (!words || n < 0) return 0;
    path[n] = '$', path[n + 1] = 0; /* "loose$" is the directory itself. */
    for (const char *end; *words; words = *end ? end + 1 : end) {
        end = strchrnul(words, ':');
        snprintf(word, sizeof word, "%.*s", (int)(end - words), words);
        if (strstr(path, word)) return 1;
    }
    return 0;
}

#define SYNC(name) \
    int name(int fd) { \
        static int (*real)(int); \
        if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, #name); \
        return lies(fd) ? 0 : real(fd); \
    }
SYNC(fsync)
SYNC(fdatasync)
