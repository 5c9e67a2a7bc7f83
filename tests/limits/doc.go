// Package limits holds the tests of size: a terabyte in a budget of a quarter
// gigabyte, a hundred thousand regions, a hundred thousand openings and
// closings. UFFDPAGER_TORTURE=1 runs them in full; otherwise they are shorter
// and claim the same.
package limits
