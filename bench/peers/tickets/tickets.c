/* The FastCGI program behind nginx: one increment in memcached per request, answered as text. It takes one request at a
 * time; spawn-fcgi starts as many of it as there are to be. The path of memcached's socket is its only argument. */
#include <fcgiapp.h>
#include <libmemcached/memcached.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static const char key[] = "bench";

int main(int argc, char **argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: tickets MEMCACHED_SOCKET\n");
    return 2;
  }
  memcached_st *memcached = memcached_create(NULL);
  memcached_return_t answer = memcached_server_add_unix_socket(memcached, argv[1]);
  if (answer == MEMCACHED_SUCCESS) {
    /* Only the first one that starts finds none. */
    answer = memcached_add(memcached, key, strlen(key), "0", 1, 0, 0);
    if (answer == MEMCACHED_NOTSTORED || answer == MEMCACHED_DATA_EXISTS) answer = MEMCACHED_SUCCESS;
  }
  if (answer != MEMCACHED_SUCCESS) {
    fprintf(stderr, "memcached: %s\n", memcached_strerror(memcached, answer));
    return 1;
  }
  FCGX_Request request;
  if (FCGX_Init() != 0 || FCGX_InitRequest(&request, 0, 0) != 0) return 1;
  while (FCGX_Accept_r(&request) == 0) {
    uint64_t number = 0;
    answer = memcached_increment(memcached, key, strlen(key), 1, &number);
    if (answer == MEMCACHED_SUCCESS) {
      FCGX_FPrintF(request.out, "Content-Type: text/plain\r\n\r\nticket number %010u\n", (unsigned)number);
    } else {
      FCGX_FPrintF(request.out, "Status: 503 Service Unavailable\r\nContent-Type: text/plain\r\n\r\n%s\n",
                   memcached_strerror(memcached, answer));
    }
    FCGX_Finish_r(&request);
  }
  return 0;
}
