// Package hostile holds the tests of bad places and bad input: processes
// without privilege, under a memory limit, with locked memory or without
// userfaultfd; odd media; and every mistake a caller or a device can make.
// Each must be a clear error that errors.Is and errors.As understand, leave
// nothing behind and hang nowhere.
package hostile
