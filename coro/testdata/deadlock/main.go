// Command deadlock has a fault server and nothing to do. The runtime must
// still see that every goroutine sleeps: the server is no work under way.
package main

import "github.com/uffdpager/uffdpager/coro"

func main() {
	if err := coro.StartServers(2); err != nil {
		panic(err)
	}
	select {}
}
