/*
 * Time stamps on their way through a pipe or a terminal, and how long it took them.
 *
 *     stamps write COUNT MICROSECONDS GATE   after somebody has written to GATE, a line with the
 *                                            time every MICROSECONDS, to stdout
 *     stamps read COUNT FILE                 the lines from stdin; each one's age in nanoseconds
 *                                            goes to FILE
 *
 * The clock is CLOCK_MONOTONIC, which is the same inside a container without a time namespace.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { DIGITS = 19 };

static void fail(const char *what) {
    fprintf(stderr, "stamps: %s: %s\n", what, strerror(errno));
    exit(1);
}

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void write_stamps(long count, long microseconds, const char *gate) {
    char line[DIGITS + 2];
    int fd = open(gate, O_RDONLY);
    if (fd < 0 || read(fd, line, 1) != 1)
        fail(gate);
    while (count--) {
        struct timespec pause = {microseconds / 1000000, microseconds % 1000000 * 1000};
        nanosleep(&pause, NULL);
        snprintf(line, sizeof line, "%0*lld\n", DIGITS, now());
        if (write(STDOUT_FILENO, line, DIGITS + 1) != DIGITS + 1)
            fail("write");
    }
}

static void read_stamps(long count, const char *path) {
    long long *ages = calloc(count, sizeof *ages);
    char data[65536], digits[DIGITS + 1] = "";
    long seen = 0, held = 0;
    for (;;) { /* to the very end: a reader that leaves would be news to the writer */
        ssize_t size = read(STDIN_FILENO, data, sizeof data);
        long long arrived = now();
        if (size < 0 && errno == EIO)
            break; /* what end-of-file is for a terminal */
        if (size < 0)
            fail("read");
        if (size == 0)
            break;
        for (ssize_t i = 0; i < size && seen < count; i++) {
            if (data[i] < '0' || data[i] > '9') {
                held = 0;
                continue;
            }
            digits[held++] = data[i];
            if (held == DIGITS) {
                ages[seen++] = arrived - atoll(digits);
                held = 0;
            }
        }
    }
    FILE *file = fopen(path, "w");
    if (!file)
        fail(path);
    for (long i = 0; i < seen; i++)
        fprintf(file, "%lld\n", ages[i]);
    if (fclose(file))
        fail(path);
}

int main(int count, char **words) {
    if (count == 5 && !strcmp(words[1], "write"))
        write_stamps(atol(words[2]), atol(words[3]), words[4]);
    else if (count == 4 && !strcmp(words[1], "read"))
        read_stamps(atol(words[2]), words[3]);
    else
        return fprintf(stderr, "stamps: write COUNT MICROSECONDS GATE | read COUNT FILE\n"), 2;
    return 0;
}
