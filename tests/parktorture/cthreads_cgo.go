//go:build linux && amd64 && cgo

package main

/*
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>

extern int goVisit(uint64_t off);

static uint64_t mix(uint64_t x) {
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdull;
	x ^= x >> 33;
	return x;
}

// words compares n words from off on and returns the offset of a wrong one, or 1.
static uint64_t words(const char *mem, uint64_t off, int n) {
	for (int i = 0; i < n; i++, off += 328)
		if (*(const volatile uint64_t *)(mem + off) != mix(off)) return off;
	return 1;
}

struct job { const char *mem; uint64_t size, seed, visits, wrong; volatile int *stop; };

static void *visit(void *v) {
	struct job *j = v;
	uint64_t r = j->seed;
	j->wrong = 1;
	while (!*j->stop && j->wrong == 1) {
		r ^= r << 13; r ^= r >> 7; r ^= r << 17;
		uint64_t off = r % (j->size - 65536) & ~7ull;
		j->wrong = words(j->mem, off, 100);
		if (j->visits++ % 4 == 0 && goVisit(off) != 0) j->wrong = off;
	}
	return 0;
}

static int start(struct job *j, pthread_t *t) { return pthread_create(t, 0, visit, j); }
static void join(pthread_t *t) { pthread_join(*t, 0); }
*/
import "C"

import (
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro/bare"
)

var visited *region

// goVisit is Go code on a thread of C's: it parks its goroutine, and with it
// the thread, which is locked to it.
//
//export goVisit
func goVisit(off C.uint64_t) C.int {
	o := uint64(off)
	b := make([]byte, 5000)
	copy(b, visited.mem(o, len(b)))
	for k := 0; k+8 <= len(b); k += 8 {
		if *(*uint64)(unsafe.Pointer(&b[k])) != mix(o+uint64(k)) {
			return 1
		}
	}
	if *visited.at(o + 8192) != mix(o+8192) {
		return 1
	}
	return 0
}

// cThreads has n threads of C's read the region, n goroutines read it in C, and
// waits for them when stop is set.
func cThreads(r *region, n int, stop *atomic.Bool) (wait func()) {
	visited = r
	mem := (*C.char)(bare.Ptr(r.lo))
	flag := (*C.int)(C.calloc(1, 4))
	jobs := make([]*C.struct_job, n)
	threads := make([]*C.pthread_t, n)
	var wg sync.WaitGroup
	var calls atomic.Uint64
	for i := range n {
		jobs[i] = (*C.struct_job)(C.calloc(1, C.sizeof_struct_job))
		*jobs[i] = C.struct_job{mem: mem, size: C.uint64_t(r.writable), seed: C.uint64_t(i + 1), stop: (*C.int)(flag)}
		threads[i] = (*C.pthread_t)(C.calloc(1, C.sizeof_pthread_t))
		if e := C.start(jobs[i], threads[i]); e != 0 {
			die("pthread_create: %d", e)
		}
		wg.Go(func() {
			for x := uint64(i); !stop.Load(); x += 0x9e3779b97f4a7c15 {
				off := mix(x) % (uint64(r.writable) - 65536) &^ 7
				if at := C.words(mem, C.uint64_t(off), 100); at != 1 {
					die("C on a thread of Go's, at %#x", uint64(at))
				}
				calls.Add(1)
			}
		})
	}
	return func() {
		wg.Wait()
		*flag = 1
		visits := uint64(0)
		for i, t := range threads {
			C.join(t)
			if jobs[i].wrong != 1 {
				die("C on its own thread, at %#x", uint64(jobs[i].wrong))
			}
			visits += uint64(jobs[i].visits)
		}
		fmt.Printf("C: %d calls, %d visits on threads of its own\n", calls.Load(), visits)
		if calls.Load() == 0 || visits == 0 {
			die("C has not got on")
		}
	}
}
