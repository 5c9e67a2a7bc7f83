// Package parkliveness holds the test that goroutines which wait for pages take
// nothing from the rest of the program: no thread each, and no P.
package parkliveness
