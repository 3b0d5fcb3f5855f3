# What `craterun.linux.relay` has as bytes: a chunk of output on its way from a container's pipe to
# its log and on to a reader. A test assembles this file and compares.
#
#     long relay(struct relay *relay)
#
# waits for the pipe and reads from it. If this relay is armed and there is room, it then holds the
# log (state TOOK) until its caller lets go of it, and has written the chunk to the log and, when that
# was all, to the reader. Returns how much was read: 0 at the end, or a negative error; ECANCELED when
# it was told to stop.
#
#     long halt(struct relay *relay)
#
# disarms it, unless it holds the log; returns what the state was.

        .intel_syntax noprefix
        .set    STATE, 0                # struct relay
        .set    YIELD_BELOW, 4
        .set    POLLED, 8               # struct pollfd of the pipe, and of what tells it to stop
        .set    STOP_EVENTS, 22
        .set    BUFFER, 24
        .set    SIZE, 32
        .set    ROOM, 40
        .set    LOG, 48
        .set    READER, 52
        .set    LOGGED, 56
        .set    PASSED, 64

        .set    IDLE, 0                 # states
        .set    ARMED, 1
        .set    TOOK, 2

        .set    SYS_read, 0
        .set    SYS_write, 1
        .set    SYS_poll, 7
        .set    SYS_sched_yield, 24
        .set    EINTR, 4
        .set    EAGAIN, 11
        .set    ECANCELED, 125

relay:
        push    rbx
        mov     rbx, rdi

wait:
        mov     eax, SYS_poll
        lea     rdi, [rbx + POLLED]
        mov     esi, 2
        mov     rdx, -1
        syscall
        cmp     rax, -EINTR
        je      wait
        test    rax, rax
        js      done
        mov     rax, -ECANCELED
        cmp     word ptr [rbx + STOP_EVENTS], 0
        jne     done

        mov     eax, SYS_read
        mov     edi, [rbx + POLLED]
        mov     rsi, [rbx + BUFFER]
        mov     rdx, [rbx + SIZE]
        syscall
        cmp     rax, -EAGAIN
        je      wait
        cmp     rax, -EINTR
        je      wait
        test    rax, rax
        jle     done
        mov     r8, rax
        cmp     rax, [rbx + ROOM]
        ja      done
        mov     eax, ARMED
        mov     ecx, TOOK
        lock cmpxchg [rbx + STATE], ecx
        mov     rax, r8
        jne     done                    # somebody needs the log, or the reader has left

        mov     eax, SYS_write
        mov     edi, [rbx + LOG]
        mov     rsi, [rbx + BUFFER]
        mov     rdx, r8
        syscall
        mov     [rbx + LOGGED], rax
        cmp     rax, r8
        jne     took                    # nobody is to see what is not in the log
        mov     edi, [rbx + READER]
        test    edi, edi
        js      give_way                # there is no reader but who looks into the log
        mov     eax, SYS_write
        mov     rdx, r8
        syscall
        mov     [rbx + PASSED], rax

give_way:
        cmp     r8d, [rbx + YIELD_BELOW]
        jae     took
        mov     eax, SYS_sched_yield
        syscall
took:
        mov     rax, r8
done:
        pop     rbx
        ret

        .balign 16
halt:
        mov     eax, ARMED
        xor     ecx, ecx
        lock cmpxchg [rdi + STATE], ecx
        ret
