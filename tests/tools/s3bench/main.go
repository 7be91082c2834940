// s3bench is a plain parallel S3 client: the "bare store" that portalbd's numbers are divided by.
//
//	s3bench --op put --size 4096 --parallel 32 --seconds 3
//
// It prints one JSON object: throughput, latencies in microseconds, errors. PUTs are conditional and
// carry a CRC32C as portalbd's do; keep-alive connections; endpoint and keys come from AWS_*; path
// style. GETs read whole objects that it puts first. It deletes everything that it put.
package main

import (
	"bytes"
	"crypto/hmac"
	crand "crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"log"
	"math/rand"
	"net/http"
	"os"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

var (
	endpoint = flag.String("endpoint", os.Getenv("AWS_ENDPOINT_URL"), "http://host:port")
	bucket   = flag.String("bucket", "bucket", "")
	prefix   = flag.String("prefix", "s3bench", "of the keys, made unique")
	op       = flag.String("op", "put", "put or get")
	size     = flag.Int("size", 4096, "bytes of an object")
	parallel = flag.Int("parallel", 1, "requests in flight")
	seconds  = flag.Float64("seconds", 3, "how long")
	requests = flag.Int64("requests", 0, "how many at most; 0: until the time is over")
	objects  = flag.Int("objects", 64, "get: how many different objects")
	keep     = flag.Bool("keep", false, "do not delete what was put")

	client = &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 256, DisableCompression: true,
		WriteBufferSize: 256 << 10, ReadBufferSize: 256 << 10,
	}}
	region = env("AWS_REGION", "us-east-1")
	crcs   = crc32.MakeTable(crc32.Castagnoli)
)

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// sign is Signature Version 4 for a request without a query.
func sign(r *http.Request) {
	now := time.Now().UTC()
	stamp, day := now.Format("20060102T150405Z"), now.Format("20060102")
	r.Header.Set("x-amz-date", stamp)
	r.Header.Set("x-amz-content-sha256", "UNSIGNED-PAYLOAD")
	names := []string{"host"}
	for name := range r.Header {
		names = append(names, strings.ToLower(name))
	}
	sort.Strings(names)
	var headers strings.Builder
	for _, name := range names {
		value := r.Header.Get(name)
		if name == "host" {
			value = r.URL.Host
		}
		fmt.Fprintf(&headers, "%s:%s\n", name, value)
	}
	signed := strings.Join(names, ";")
	canonical := strings.Join([]string{r.Method, r.URL.EscapedPath(), "", headers.String(), signed, "UNSIGNED-PAYLOAD"}, "\n")
	scope := day + "/" + region + "/s3/aws4_request"
	hash := sha256.Sum256([]byte(canonical))
	key := mac(mac(mac(mac([]byte("AWS4"+os.Getenv("AWS_SECRET_ACCESS_KEY")), day), region), "s3"), "aws4_request")
	signature := mac(key, "AWS4-HMAC-SHA256\n"+stamp+"\n"+scope+"\n"+hex.EncodeToString(hash[:]))
	r.Header.Set("Authorization", fmt.Sprintf("AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s",
		os.Getenv("AWS_ACCESS_KEY_ID"), scope, signed, hex.EncodeToString(signature)))
}

func do(method, key string, body []byte, crc string) error {
	var from io.Reader
	if body != nil {
		from = bytes.NewReader(body)
	}
	r, err := http.NewRequest(method, *endpoint+"/"+*bucket+"/"+key, from)
	if err != nil {
		return err
	}
	if method == "PUT" {
		r.Header.Set("if-none-match", "*")
		r.Header.Set("x-amz-checksum-crc32c", crc)
	}
	sign(r)
	answer, err := client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	n, err := io.Copy(io.Discard, answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: status %d", method, key, answer.StatusCode)
	}
	if method == "GET" && n != int64(*size) {
		return fmt.Errorf("get %s: %d bytes", key, n)
	}
	return nil
}

type result struct {
	Op           string  `json:"op"`
	SizeBytes    int     `json:"size_bytes"`
	Parallel     int     `json:"parallel"`
	Requests     int     `json:"requests"`
	Errors       int64   `json:"errors"`
	Seconds      float64 `json:"seconds"`
	RequestsPerS float64 `json:"requests_per_s"`
	BytesPerS    float64 `json:"bytes_per_s"`
	MeanUs       float64 `json:"mean_us"`
	P50Us        float64 `json:"p50_us"`
	P99Us        float64 `json:"p99_us"`
	MaxUs        float64 `json:"max_us"`
}

// measure runs f in parallel until the time or the requests are over.
func measure(f func(i int64) error) result {
	var next, errors atomic.Int64
	var lock sync.Mutex
	var all []float64
	var group sync.WaitGroup
	start := time.Now()
	end := start.Add(time.Duration(*seconds * float64(time.Second)))
	for i := 0; i < *parallel; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			var mine []float64
			for time.Now().Before(end) {
				n := next.Add(1) - 1
				if *requests > 0 && n >= *requests {
					break
				}
				began := time.Now()
				if err := f(n); err != nil {
					if errors.Add(1) == 1 {
						log.Print(err)
					}
					continue
				}
				mine = append(mine, float64(time.Since(began).Nanoseconds())/1000)
			}
			lock.Lock()
			all = append(all, mine...)
			lock.Unlock()
		}()
	}
	group.Wait()
	took := time.Since(start).Seconds()
	r := result{Op: *op, SizeBytes: *size, Parallel: *parallel, Requests: len(all), Errors: errors.Load(), Seconds: took}
	if len(all) == 0 {
		return r
	}
	sort.Float64s(all)
	sum := 0.0
	for _, v := range all {
		sum += v
	}
	at := func(q float64) float64 { return all[int(q*float64(len(all)-1))] }
	r.RequestsPerS = float64(len(all)) / took
	r.BytesPerS = r.RequestsPerS * float64(*size)
	r.MeanUs, r.P50Us, r.P99Us, r.MaxUs = sum/float64(len(all)), at(.5), at(.99), at(1)
	return r
}

// inParallel calls f for 0..n-1, 16 at a time.
func inParallel(n int64, f func(i int64)) {
	var group sync.WaitGroup
	slots := make(chan struct{}, 16)
	for i := int64(0); i < n; i++ {
		group.Add(1)
		slots <- struct{}{}
		go func(i int64) {
			defer group.Done()
			f(i)
			<-slots
		}(i)
	}
	group.Wait()
}

func main() {
	log.SetFlags(0)
	flag.Parse()
	if *endpoint == "" || (*op != "put" && *op != "get") || *parallel < 1 || *size < 0 {
		flag.Usage()
		os.Exit(2)
	}
	body := make([]byte, *size)
	crand.Read(body)
	var sum [4]byte
	binary.BigEndian.PutUint32(sum[:], crc32.Checksum(body, crcs))
	crc := base64.StdEncoding.EncodeToString(sum[:])
	base := fmt.Sprintf("%s/%016x", *prefix, rand.Uint64())
	key := func(i int64) string { return fmt.Sprintf("%s/%08d", base, i) }

	var last atomic.Int64 // keys below this were tried
	put := func(i int64) error {
		for {
			old := last.Load()
			if i < old || last.CompareAndSwap(old, i+1) {
				break
			}
		}
		return do("PUT", key(i), body, crc)
	}
	var r result
	if *op == "put" {
		r = measure(put)
	} else {
		inParallel(int64(*objects), func(i int64) {
			if err := put(i); err != nil {
				log.Fatal(err)
			}
		})
		r = measure(func(i int64) error { return do("GET", key(i%int64(*objects)), nil, "") })
	}
	if !*keep {
		inParallel(last.Load(), func(i int64) { do("DELETE", key(i), nil, "") })
	}
	json.NewEncoder(os.Stdout).Encode(r)
	if r.Errors > 0 || r.Requests == 0 {
		os.Exit(1)
	}
}
