//go:build race

package parkforms

// race: atomics and range checks of the race detector run in C.
const race = true
