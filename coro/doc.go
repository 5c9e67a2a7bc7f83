// Package coro stops the code that touched a page which is not there, and
// resumes it when it is: the SIGBUS trap, the landing-pad copy, park in place,
// the fault server; and, for code that waits knowingly, Await and the event
// loop.
//
// It knows the Go runtime, signals and eventfds. What a page is, where it
// comes from and which one leaves is the business of its user, who describes
// a range of addresses as an arena: [AddArena] with a Decide that judges a
// fault in signal context, and a Serve that can load a page without Go.
//
//	an instruction touches a page that is not there
//	        │ SIGBUS (userfaultfd, UFFD_FEATURE_SIGBUS) on the faulting thread
//	        ▼
//	not in an arena? ──────────────▶ the handler that was there before: Go's
//	inside CopyOut? ───────────────▶ CopyOut returns what is left, and where
//	Decide ── Retry ───────────────▶ the instruction runs again
//	       ── Wait, WaitGo ─ can the goroutine be parked at this instruction?
//	       │     yes ──────────────▶ parked; its thread and P run others;
//	       │                         later the instruction runs again
//	       │     no, Wait ─────────▶ the thread sleeps until a fault server,
//	       │                         which needs no P, has loaded the page
//	       │     no, WaitGo ───┐
//	       └─ Deliver ─────────┴───▶ a Go fault with Addr(), and a line in the
//	                                 fault log that says why
//
// Everything but Await and the event loop works on linux/amd64 only; see
// [Supported].
package coro
