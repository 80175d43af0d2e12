package port

import (
	"net"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFree(t *testing.T) {
	for range 20 {
		port, err := Free("127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		if port < lowest || port >= lowestOfKernel() {
			t.Errorf("port %d", port)
		}
		l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if socket, err := reserve(port); err == nil {
			unix.Close(socket)
			t.Errorf("port %d would be given to another", port)
		}
	}
	if _, err := Free("192.0.2.1"); err == nil {
		t.Error("a port of an address that is not ours")
	}
}
