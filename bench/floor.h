/* What floor.c (the parent) and floor_child.c (the container) share. */
#define LENGTH(array) (sizeof(array) / sizeof(*(array)))
#define HIERARCHIES_MAX 16
#define UNIFIED 0

/* The hierarchies every container gets a cgroup in; [UNIFIED] is the v2 mount. */
extern const char *const hierarchies[HIERARCHIES_MAX];
/* Our own cgroup in each, or -1 where the host has no such hierarchy. */
extern int parents[HIERARCHIES_MAX];
/* A mount namespace with nothing in it but an empty directory: copying it and
 * mounting there costs less than copying the host's and leaving by pivot_root. */
extern int blank;

void complain(const char *what, const char *which);

/* Do in the new process all that makes it a container, and exec /bin/true. */
_Noreturn void become_container(const char *rootfs, const char *name);
