package main

import (
	"io"
	"net"
	"net/url"
	"sync"
)

// proxy passes TCP connections on to the server and can cut them, to make a client
// resume what it had open.
type proxy struct {
	listener net.Listener
	target   string

	mutex sync.Mutex
	open  map[net.Conn]bool
	down  bool
}

func newProxy() *proxy {
	p := &proxy{
		listener: must(net.Listen("tcp", "127.0.0.1:0")),
		target:   must(url.Parse(endpoint)).Host,
		open:     map[net.Conn]bool{},
	}
	go func() {
		for {
			from, err := p.listener.Accept()
			if err != nil {
				return
			}
			go p.pass(from)
		}
	}()
	return p
}

func (p *proxy) endpoint() string { return "http://" + p.listener.Addr().String() }

func (p *proxy) pass(from net.Conn) {
	p.mutex.Lock()
	down := p.down
	p.mutex.Unlock()
	if down {
		from.Close()
		return
	}
	to, err := net.Dial("tcp", p.target)
	if err != nil {
		from.Close()
		return
	}
	p.mutex.Lock()
	p.open[from], p.open[to] = true, true
	p.mutex.Unlock()
	var both sync.WaitGroup
	for _, pair := range [][2]net.Conn{{from, to}, {to, from}} {
		both.Go(func() {
			io.Copy(pair[0], pair[1])
			from.Close()
			to.Close()
		})
	}
	both.Wait()
	p.mutex.Lock()
	delete(p.open, from)
	delete(p.open, to)
	p.mutex.Unlock()
}

// cut ends all connections; with down, new ones are refused until up.
func (p *proxy) cut(down bool) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.down = down
	for connection := range p.open {
		connection.Close()
	}
}

func (p *proxy) up() {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.down = false
}

func (p *proxy) close() {
	p.listener.Close()
	p.cut(true)
}
