//go:build race

package child

// Race: this is a build with the race detector.
const Race = true
