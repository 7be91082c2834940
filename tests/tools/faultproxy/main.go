// faultproxy stands between a client and an S3 server and misbehaves as networks and servers do:
// it delays, answers 500/503/429 itself, drops answers after the server has carried the request
// out, cuts connections in the middle of bodies, hangs, goes down; and it counts.
//
//	faultproxy --target http://127.0.0.1:7070 --addr-file /tmp/proxy.addr --delay 15ms
//
// The address file gets two lines when both listeners stand: proxy=http://127.0.0.1:PORT and
// control=http://127.0.0.1:PORT. The control endpoint:
//
//	GET  /counts                 requests and bytes by kind, as JSON
//	POST /reset                  counts from zero
//	GET  /config                 what is set, as JSON
//	POST /config?drop=0.1&...    sets what is named and leaves the rest
//
// Settings (flags at the start, parameters later): delay, jitter (durations: each request waits
// delay + random(jitter)), rate (bytes a second that all bodies together may take in each direction, as on
// one network link; 0: no limit), slow (probability that a request waits slow_delay on top), error, drop, cut (probabilities), codes (500,503,429), retry_after
// (seconds), kinds (PUT,GET: only these meet faults; empty: all), key (only paths that contain it),
// down (connections are closed at once), hang (no answer until it is switched off).
//
// Of the faults the first that the dice choose happens: error, drop, cut.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

type config struct {
	Delay      time.Duration `json:"delay_ns"`
	Jitter     time.Duration `json:"jitter_ns"`
	Rate       float64       `json:"rate"`
	Slow       float64       `json:"slow"`
	SlowDelay  time.Duration `json:"slow_delay_ns"`
	Error      float64       `json:"error"`
	Drop       float64       `json:"drop"`
	Cut        float64       `json:"cut"`
	Codes      []int         `json:"codes"`
	RetryAfter int           `json:"retry_after"`
	Kinds      []string      `json:"kinds"`
	Key        string        `json:"key"`
	Down       bool          `json:"down"`
	Hang       bool          `json:"hang"`
}

// set changes one setting by its name; the one parser of flags and of the control endpoint.
func (c *config) set(name, value string) (err error) {
	switch name {
	case "delay":
		c.Delay, err = time.ParseDuration(value)
	case "jitter":
		c.Jitter, err = time.ParseDuration(value)
	case "rate":
		c.Rate, err = strconv.ParseFloat(value, 64)
	case "slow":
		c.Slow, err = strconv.ParseFloat(value, 64)
	case "slow_delay":
		c.SlowDelay, err = time.ParseDuration(value)
	case "error":
		c.Error, err = strconv.ParseFloat(value, 64)
	case "drop":
		c.Drop, err = strconv.ParseFloat(value, 64)
	case "cut":
		c.Cut, err = strconv.ParseFloat(value, 64)
	case "retry_after":
		c.RetryAfter, err = strconv.Atoi(value)
	case "codes":
		c.Codes = nil
		for _, word := range words(value) {
			code, e := strconv.Atoi(word)
			if e != nil || code < 400 || code > 599 {
				return fmt.Errorf("codes: %q is no error status", word)
			}
			c.Codes = append(c.Codes, code)
		}
	case "kinds":
		c.Kinds = words(strings.ToUpper(value))
	case "key":
		c.Key = value
	case "down":
		c.Down, err = strconv.ParseBool(value)
	case "hang":
		c.Hang, err = strconv.ParseBool(value)
	default:
		err = fmt.Errorf("no setting %q", name)
	}
	return err
}

func words(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' })
}

func (c *config) applies(kind, path string) bool {
	if !strings.Contains(path, c.Key) {
		return false
	}
	for _, k := range c.Kinds {
		if k == kind {
			return true
		}
	}
	return len(c.Kinds) == 0
}

type count struct {
	Requests  int64            `json:"requests"`
	BytesUp   int64            `json:"bytes_up"`   // of bodies, from the client
	BytesDown int64            `json:"bytes_down"` // of bodies, to the client
	Status    map[string]int64 `json:"status"`     // answers of the server
	Faults    map[string]int64 `json:"faults"`     // what was done to requests
}

type proxy struct {
	target    *url.URL
	transport *http.Transport
	up, down  link

	mu      sync.Mutex // guards what follows
	config  config
	change  chan struct{} // closed and replaced when the config changes
	counts  map[string]*count
	inUse   int
	inUseMx int
}

func (p *proxy) settings() (config, chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.config, p.change
}

func newCount() *count {
	return &count{Status: map[string]int64{}, Faults: map[string]int64{}}
}

func (p *proxy) count(kind string, f func(c *count)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.counts[kind] == nil {
		p.counts[kind] = newCount()
	}
	f(p.counts[kind])
}

func (p *proxy) enter(step int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inUse += step
	p.inUseMx = max(p.inUseMx, p.inUse)
}

// kindOf says what a request is in S3's terms, for path style addressing.
func kindOf(r *http.Request) string {
	_, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	query := r.URL.Query()
	switch {
	case r.Method == "GET" && key == "":
		return "LIST"
	case r.Method == "POST" && query.Has("delete"), r.Method == "DELETE":
		return "DELETE"
	case r.Method == "GET", r.Method == "PUT":
		return r.Method
	}
	return "OTHER"
}

// countingBody counts what the client sends, and can end it early.
type countingBody struct {
	io.ReadCloser
	read  int64
	limit int64 // negative: none
	link  *link
	rate  float64
}

func (b *countingBody) Read(to []byte) (int, error) {
	if b.limit >= 0 {
		if b.read >= b.limit {
			return 0, fmt.Errorf("cut")
		}
		to = to[:min(int64(len(to)), b.limit-b.read)]
	}
	n, err := b.ReadCloser.Read(to)
	b.read += int64(n)
	b.link.take(n, b.rate)
	return n, err
}

// link is one direction of a network link: whoever sends holds it for bytes / rate.
type link struct {
	mu   sync.Mutex
	free time.Time
}

func (l *link) take(n int, rate float64) {
	if rate <= 0 || n <= 0 {
		return
	}
	l.mu.Lock()
	now := time.Now()
	if l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(float64(n) / rate * float64(time.Second)))
	ahead := l.free.Sub(now)
	l.mu.Unlock()
	if ahead > 2*time.Millisecond { // shorter sleeps take longer than they say
		time.Sleep(ahead)
	}
}

type linkReader struct {
	io.Reader
	link *link
	rate float64
}

func (r linkReader) Read(to []byte) (int, error) {
	n, err := r.Reader.Read(to)
	r.link.take(n, r.rate)
	return n, err
}

// hangUp closes the client's connection without another byte.
func hangUp(w http.ResponseWriter) {
	panic(http.ErrAbortHandler)
}

func (p *proxy) fault(c *config) string {
	dice := rand.Float64()
	switch {
	case dice < c.Error:
		return "error"
	case dice < c.Error+c.Drop:
		return "drop"
	case dice < c.Error+c.Drop+c.Cut:
		return "cut"
	}
	return ""
}

func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// hold keeps the request while `hang` is on; false when the client went away meanwhile.
func (p *proxy) hold(r *http.Request) bool {
	for {
		c, change := p.settings()
		if !c.Hang {
			return true
		}
		select {
		case <-change:
		case <-r.Context().Done():
			return false
		}
	}
}

var names = map[int]string{500: "InternalError", 503: "SlowDown", 429: "TooManyRequests"}

func answerError(w http.ResponseWriter, r *http.Request, c *config) {
	io.Copy(io.Discard, r.Body)
	code := c.Codes[rand.Intn(len(c.Codes))]
	name := names[code]
	if name == "" {
		name = "InternalError"
	}
	if c.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(c.RetryAfter))
	}
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(code)
	fmt.Fprintf(w, "<?xml version=\"1.0\"?><Error><Code>%s</Code><Message>by faultproxy</Message></Error>", name)
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.enter(1)
	defer p.enter(-1)
	kind := kindOf(r)
	c, _ := p.settings()
	if c.Down {
		p.count(kind, func(n *count) { n.Requests++; n.Faults["down"]++ })
		hangUp(w)
	}
	delay := c.Delay + time.Duration(rand.Int63n(int64(c.Jitter)+1))
	if rand.Float64() < c.Slow {
		delay += c.SlowDelay
	}
	wait(r.Context(), delay)
	if !p.hold(r) {
		hangUp(w)
	}
	fault := ""
	if c.applies(kind, r.URL.Path) {
		fault = p.fault(&c)
	}
	p.count(kind, func(n *count) {
		n.Requests++
		if fault != "" {
			n.Faults[fault]++
		}
	})
	if fault == "error" {
		answerError(w, r, &c)
		return
	}
	p.forward(w, r, kind, fault, c.Rate)
}

func (p *proxy) forward(w http.ResponseWriter, r *http.Request, kind, fault string, rate float64) {
	body := &countingBody{ReadCloser: r.Body, limit: -1, link: &p.up, rate: rate}
	cutUpload := fault == "cut" && r.ContentLength > 0 && rand.Intn(2) == 0
	if cutUpload {
		body.limit = r.ContentLength / 2
	}
	out := r.Clone(r.Context())
	out.URL.Scheme, out.URL.Host = p.target.Scheme, p.target.Host
	out.RequestURI = ""
	out.Body = body
	if r.ContentLength == 0 {
		out.Body = http.NoBody
	}
	if out.Header.Get("User-Agent") == "" {
		out.Header["User-Agent"] = []string{""} // net/http would add its own
	}
	answer, err := p.transport.RoundTrip(out)
	p.count(kind, func(n *count) { n.BytesUp += body.read })
	if err != nil {
		if !cutUpload {
			p.count(kind, func(n *count) { n.Status["none"]++ })
		}
		hangUp(w)
	}
	defer answer.Body.Close()
	p.count(kind, func(n *count) { n.Status[strconv.Itoa(answer.StatusCode)]++ })
	if fault == "drop" {
		io.Copy(io.Discard, answer.Body)
		hangUp(w)
	}
	for name, values := range answer.Header {
		w.Header()[name] = values
	}
	if answer.ContentLength >= 0 {
		w.Header().Set("Content-Length", strconv.FormatInt(answer.ContentLength, 10))
	}
	w.WriteHeader(answer.StatusCode)
	from := io.Reader(answer.Body)
	if rate > 0 {
		from = linkReader{from, &p.down, rate}
	}
	if fault == "cut" {
		from = io.LimitReader(from, max(answer.ContentLength, 0)/2)
	}
	sent, err := io.Copy(w, from)
	p.count(kind, func(n *count) { n.BytesDown += sent })
	if fault == "cut" || err != nil {
		http.NewResponseController(w).Flush()
		hangUp(w)
	}
}

func (p *proxy) serveCounts(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := map[string]any{"in_flight_max": p.inUseMx}
	total := newCount()
	for _, kind := range []string{"PUT", "GET", "LIST", "DELETE", "OTHER"} {
		c := p.counts[kind]
		if c == nil {
			c = newCount()
		}
		all[kind] = c
		total.Requests += c.Requests
		total.BytesUp += c.BytesUp
		total.BytesDown += c.BytesDown
		for status, n := range c.Status {
			total.Status[status] += n
		}
		for fault, n := range c.Faults {
			total.Faults[fault] += n
		}
	}
	all["total"] = total
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(all)
}

func (p *proxy) reset(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts = map[string]*count{}
	p.inUseMx = p.inUse
	fmt.Fprintln(w, "ok")
}

func (p *proxy) serveConfig(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.Method == "POST" {
		next := p.config
		if err := r.ParseForm(); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		for name, values := range r.Form {
			if err := next.set(name, values[len(values)-1]); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
		}
		p.config = next
		close(p.change)
		p.change = make(chan struct{})
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(p.config)
}

func listen(addr string) net.Listener {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		log.Fatal(err)
	}
	return l
}

// writeAddresses puts the file there whole, so that who waits for it never reads half of it.
func writeAddresses(path string, text string) {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
		log.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		log.Fatal(err)
	}
}

func main() {
	log.SetFlags(0)
	target := flag.String("target", "", "the S3 server, http://host:port")
	listenAddr := flag.String("listen", "127.0.0.1:0", "where clients come")
	controlAddr := flag.String("control", "127.0.0.1:0", "where counts and settings are")
	addrFile := flag.String("addr-file", "", "file that gets both addresses")
	p := &proxy{counts: map[string]*count{}, change: make(chan struct{})}
	p.config.Codes = []int{500, 503, 429}
	for _, name := range []string{"delay", "jitter", "rate", "slow", "slow_delay", "error", "drop", "cut", "codes", "retry_after", "kinds", "key", "down", "hang"} {
		name := name
		flag.Func(name, "setting", func(value string) error { return p.config.set(name, value) })
	}
	flag.Parse()
	u, err := url.Parse(*target)
	if err != nil || u.Host == "" {
		log.Fatalf("--target %q is not http://host:port", *target)
	}
	p.target = u
	p.transport = &http.Transport{
		DisableCompression: true, MaxIdleConnsPerHost: 256, IdleConnTimeout: 30 * time.Second,
		WriteBufferSize: 256 << 10, ReadBufferSize: 256 << 10, ForceAttemptHTTP2: false,
	}
	control := http.NewServeMux()
	control.HandleFunc("/counts", p.serveCounts)
	control.HandleFunc("/reset", p.reset)
	control.HandleFunc("/config", p.serveConfig)
	proxyListener, controlListener := listen(*listenAddr), listen(*controlAddr)
	text := fmt.Sprintf("proxy=http://%s\ncontrol=http://%s\n", proxyListener.Addr(), controlListener.Addr())
	fmt.Print(text)
	if *addrFile != "" {
		writeAddresses(*addrFile, text)
	}
	go func() { log.Fatal(http.Serve(controlListener, control)) }()
	server := &http.Server{Handler: p, ErrorLog: log.New(io.Discard, "", 0)}
	log.Fatal(server.Serve(proxyListener))
}
