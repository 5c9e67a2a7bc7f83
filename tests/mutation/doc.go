// Command mutation breaks the pager on purpose, one defect at a time, in scratch
// copies of the files concerned, and checks that a named test notices. A suite
// that lets a defect pass proves nothing about the code without it.
//
//	go run ./tests/mutation                 all of them
//	go run ./tests/mutation -quick          those that CI runs
//	go run ./tests/mutation -run sticky -v  some, with the output of the tests
//	go run ./tests/mutation -docs           all, and their rows in docs/testing.md anew
//
// The defects are a table (table.go): a piece of source text, what it becomes,
// and the test that must fail. A test that ends at its deadline has found
// nothing unless the defect is a hang, and then says so. The exit status is 1 if
// some defect is not caught, or not in that way.
package main
