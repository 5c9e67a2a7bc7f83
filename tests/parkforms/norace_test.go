//go:build !race

package parkforms

const race = false
