package main

import (
	"fmt"

	"github.com/uffdpager/uffdpager/prefetch"
)

// open makes the policy. finish must be called after the region is closed; it
// completes the file of a recording.
func (p prefetchChoice) open() (policy prefetch.Policy, finish func() error, err error) {
	switch p.name {
	case "readahead":
		return nil, func() error { return nil }, nil
	}
	return nil, nil, fmt.Errorf("--prefetch %s: not there yet", p)
}
