// The first process of every pod of the test cluster: holds the pod's namespaces, takes in orphans, ends when told to.
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int signal) { _exit(0); }

static void reap(int signal) {
    while (waitpid(-1, NULL, WNOHANG) > 0) {
    }
}

int main(void) {
    if (sigaction(SIGINT, &(struct sigaction){.sa_handler = end}, NULL) != 0 ||
        sigaction(SIGTERM, &(struct sigaction){.sa_handler = end}, NULL) != 0 ||
        sigaction(SIGCHLD, &(struct sigaction){.sa_handler = reap, .sa_flags = SA_NOCLDSTOP}, NULL) != 0) {
        return EXIT_FAILURE;
    }
    for (;;) {
        pause();
    }
}
