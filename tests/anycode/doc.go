// Package anycode holds the tests that let every kind of Go code that is no
// plain load run over missing pages: assembly, the runtime's own code,
// reflection, fmt, atomics. Such code cannot be preempted where it faults, and
// a stop-the-world waits for it. Each runs in a process of its own with the
// collector going round, alone and while the pager is loading or evicting the
// very page it touches.
package anycode
