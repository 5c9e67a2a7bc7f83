//go:build !linux

package main

// troubles has one thing to say.
func troubles(*diagnosis, int, int) []trouble {
	return []trouble{{"system", "the pager needs Linux", "run it on Linux"}}
}

func busBlocked() (blocked, threads int) { return 0, 0 }
