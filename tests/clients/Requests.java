// Java's own client over HTTP/1.1: eight requests at a time, on connections that it keeps.
// Usage: java Requests.java ORIGIN CA_FILE COUNT; prints `answered COUNT` where every answer was its request's own.
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Semaphore;
import java.util.stream.IntStream;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

public class Requests {
    public static void main(String[] args) throws Exception {
        int count = Integer.parseInt(args[2]);
        KeyStore trusted = KeyStore.getInstance(KeyStore.getDefaultType());
        trusted.load(null, null);
        try (var file = Files.newInputStream(Path.of(args[1]))) {
            trusted.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(file));
        }
        var trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(trusted);
        var tls = SSLContext.getInstance("TLS");
        tls.init(null, trust.getTrustManagers(), null);
        var client = HttpClient.newBuilder().sslContext(tls).version(HttpClient.Version.HTTP_1_1).build();
        var atOnce = new Semaphore(8);
        var all = IntStream.range(0, count).mapToObj(number -> {
            atOnce.acquireUninterruptibly();
            String path = "/" + number;
            String body = number % 3 == 0 ? ("body of " + number + " ").repeat(1 + number % 400) : "";
            String method = body.isEmpty() ? "GET" : "POST";
            var publisher = body.isEmpty() ? HttpRequest.BodyPublishers.noBody() : HttpRequest.BodyPublishers.ofString(body);
            var request = HttpRequest.newBuilder(URI.create(args[0] + path)).method(method, publisher).build();
            return client.sendAsync(request, HttpResponse.BodyHandlers.ofString()).thenAccept(answer -> {
                atOnce.release();
                if (!answer.body().equals(method + " " + path + " " + body)) {
                    throw new IllegalStateException("asked for " + path + ", was told " + answer.body());
                }
            });
        }).toArray(CompletableFuture[]::new);
        CompletableFuture.allOf(all).get();
        System.out.println("answered " + count);
    }
}
