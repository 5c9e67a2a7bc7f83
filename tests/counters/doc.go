// Package counters holds the tests in which every number is known beforehand:
// without prefetching, with one page per eviction and a FIFO, each read,
// writeback and eviction of a simple history can be counted on paper. Where
// they cannot, they are compared with a simulation that sees every touch.
package counters
